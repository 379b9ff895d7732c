// Shows the grants of a running refresher, live. The stream fills a store; `draw` shows the visible part of it.
//
// Text from servers is untrusted: it is only ever set as text. Times are those of the server's clock.

import { drawDetails } from './details.js';
import {
  ask, count, DAY, full, isTime, minute, plain, relative, setText, setTime, span, STATES,
} from './elements.js';

const PAGE_SIZE = 100;
const SOON = 7 * DAY;
const EXPIRY_GRACE = 10; // some servers refresh a token only when it has expired
const REDRAW_MS = 250;
const RETRY_MS = 5_000;
const DRIFT_MS = 2_000;
const SILENCE_MS = 30_000; // after so long without an event, the page asks whether refresher still answers
const RANK = { person: 0, failing: 1, ending: 2, fresh: 3 };

const byId = (id) => document.getElementById(id);
const grants = new Map(); // rows by name
const states = new Map(); // the last known state by name, to announce changes
const items = new Map(); // list items by name, of the visible page
const opened = new Set(); // names whose details are open
const changes = []; // sentences to announce
let clock = { server: Date.now() / 1000, read: performance.now(), local: Date.now() };
let link = { state: 'waiting', since: clock.server };
let view = { group: 'all', text: '', page: 0 };
let glance = {};
let matching = [];
let arranged = 0;
let source, drawing;

const now = () => clock.server + (performance.now() - clock.read) / 1000;

function prepare(row) {
  const ends = (row.ends ?? []).filter((end) => end.kind !== 'refresh_token' && isTime(end.at));
  if (isTime(row.login_ends_at)) ends.push({ kind: 'login', at: row.login_ends_at });
  const end = ends.sort((a, b) => a.at - b.at)[0];
  const account = row.account?.label ?? row.account?.subject ?? '';
  const server = (row.resource ?? row.origins?.[0] ?? row.issuer ?? '').replace(/^https?:\/\//, '');
  const search = [row.name, account, server, row.issuer].join('\n').toLowerCase();
  return { ...row, end, shown: { account, server }, search };
}

const hasToken = (row, at) => row.issued_at !== null && (row.expires_at === null || row.expires_at + EXPIRY_GRACE > at);

function groupOf(row, at) {
  if (row.state === 'reauthorization_required' || row.state === 'invalid_grant_file') return 'person';
  if (row.state !== 'active' || row.overdue || !hasToken(row, at)) return 'failing';
  return row.end && row.end.at - at < SOON ? 'ending' : 'fresh';
}

function stateWords(row, at) {
  const group = groupOf(row, at);
  if (group === 'ending') return `Fresh, ${plain(row.end.kind)} ${row.end.at > at ? 'ends soon' : 'has ended'}`;
  if (group === 'person' && row.error?.code === 'access_denied') return 'Blocked by an administrator';
  if (group !== 'failing') return STATES[row.state];
  if (row.overdue) return 'Overdue: nobody refreshes it';
  if (row.state === 'active') return row.issued_at === null ? 'No token yet' : 'Token expired';
  return `${STATES[row.state] ?? plain(row.state)}, ${hasToken(row, at) ? 'token still valid' : 'no valid token'}`;
}

function connect() {
  source?.close();
  source = new EventSource('/stream');
  source.addEventListener('snapshot', (event) => receive(JSON.parse(event.data), true));
  source.addEventListener('change', (event) => receive(JSON.parse(event.data), false));
  source.onerror = () => {
    lose('The page tries again by itself.');
    if (source.readyState === EventSource.CLOSED) explain();
  };
}

function receive(message, replace) {
  clock = { server: message.now, read: performance.now(), local: Date.now() };
  if (replace) grants.clear();
  for (const row of message.grants) {
    const grant = prepare(row);
    const before = states.get(row.name) ?? row.state;
    if (before !== row.state) changes.push(`${row.name}: ${stateWords(grant, message.now)}.`);
    grants.set(row.name, grant);
    states.set(row.name, row.state);
  }
  for (const name of message.removed ?? []) {
    if (grants.delete(name)) changes.push(`${name} was removed.`);
    states.delete(name);
    opened.delete(name);
  }
  if (link.state === 'lost') changes.push('The connection to refresher is back.');
  if (link.state !== 'live') link = { state: 'live', since: message.now, known: true };
  drawSoon();
}

function lose(advice) {
  if (link.state !== 'lost') {
    link = { ...link, state: 'lost', since: now() };
    changes.push('The connection to refresher is lost.');
  }
  link.advice = advice;
  drawSoon();
}

// A browser gives up a stream that is refused, and does not say why: ask again.
async function explain() {
  try {
    const answer = await ask('/stream');
    const text = answer.ok ? answer.body.cancel() : (await answer.text()).trim().slice(0, 500);
    if (answer.status === 401) return lose('Reload this page, and enter the page token as the password.');
    if (answer.status === 403) return lose(`refresher refuses: ${text}. Then reload this page.`);
    if (!answer.ok) lose(`refresher refuses: ${text || answer.status}. The page tries again by itself.`);
  } catch {
    // Nothing answers, as the page already says.
  }
  setTimeout(connect, RETRY_MS);
}

// While a machine is suspended, the clock of the page stands still, and a connection can end without a sign.
async function check() {
  if (link.state !== 'live') return;
  const passed = performance.now() - clock.read;
  if (Math.abs(Date.now() - clock.local - passed) > DRIFT_MS) {
    connect(); // a new stream begins with the time
  } else if (passed > SILENCE_MS) {
    await ask('/healthz').catch(() => {
      lose('The page tries again by itself.');
      connect();
    });
  }
}

function drawSoon() {
  arranged = 0;
  drawing ??= setTimeout(draw, REDRAW_MS);
}

function draw() {
  drawing = clearTimeout(drawing);
  const at = link.state === 'lost' ? link.since : now(); // without a connection, all stays as it was last known
  if (at - arranged > EXPIRY_GRACE) arrange(at);
  drawGlance(at);
  drawList(at);
  if (changes.length) {
    const more = changes.length > 3 ? ` And ${changes.length - 3} more changes.` : '';
    setText(byId('announcer'), changes.splice(0).slice(0, 3).join(' ') + more);
  }
}

function arrange(at) {
  arranged = at;
  glance = { all: grants.size, person: 0, failing: 0, ending: 0, fresh: 0, overdue: 0, expiry: null };
  const text = view.text.trim().toLowerCase();
  matching = [];
  for (const row of grants.values()) {
    row.group = groupOf(row, at);
    glance[row.group] += 1;
    if (row.overdue) glance.overdue += 1;
    const isSooner = isTime(row.expires_at) && row.expires_at > at && !(glance.expiry?.expires_at <= row.expires_at);
    if (isSooner) glance.expiry = row;
    const isShown = ['all', row.group].includes(view.group) || (view.group === 'fresh' && row.group === 'ending');
    if (isShown && row.search.includes(text)) matching.push(row);
  }
  glance.fresh += glance.ending; // a grant whose login ends soon is fresh until then
  matching.sort((a, b) => RANK[a.group] - RANK[b.group] || (a.name < b.name ? -1 : 1));
  view.page = Math.max(0, Math.min(view.page, Math.ceil(matching.length / PAGE_SIZE) - 1));
}

function headline() {
  if (!link.known) return link.state === 'lost' ? 'No connection to refresher' : 'Connecting to refresher';
  if (!glance.all) return 'No grants yet';
  const some = (number, one, several) => {
    const of = number === glance.all ? `All ${count(number)}` : `${count(number)} of ${count(glance.all)}`;
    return `${glance.all === 1 ? 'The grant' : `${of} grants`} ${number === 1 ? one : several}`;
  };
  if (glance.person) return some(glance.person, 'needs a person', 'need a person');
  if (glance.failing) return some(glance.failing, 'is failing', 'are failing');
  return some(glance.fresh, 'is fresh', 'are fresh');
}

function drawGlance(at) {
  const lost = link.state === 'lost';
  const title = headline();
  const { expiry } = glance;
  document.body.dataset.link = link.state;
  document.title = `${lost ? 'Connection lost' : title} - refresher`;
  setText(byId('headline'), title);
  setText(byId('link-words'), { waiting: 'Connecting', live: 'Live since', lost: 'Connection lost at' }[link.state]);
  setTime(byId('link-since'), link.since, link.state === 'waiting' ? '' : minute(link.since));
  byId('expiry').hidden = !expiry;
  setText(byId('expiry-name'), expiry?.name ?? '');
  setTime(byId('expiry-time'), expiry?.expires_at, expiry ? relative(expiry.expires_at, at) : '');
  byId('lost').hidden = !lost;
  const missed = `No connection to refresher for ${span(now() - link.since)}. ${link.advice}`;
  const frozen = link.known ? ` Everything below is as it was at ${full(link.since).slice(11, 19)}.` : '';
  if (lost) setText(byId('lost'), missed + frozen);
  byId('overdue').hidden = !glance.overdue || lost;
  byId('empty').hidden = glance.all > 0 || link.state !== 'live';
  byId('some').hidden = !glance.all;
  for (const number of document.querySelectorAll('[data-count]')) setText(number, count(glance[number.dataset.count]));
}

function drawList(at) {
  const list = byId('grants');
  const from = view.page * PAGE_SIZE;
  const rows = matching.slice(from, from + PAGE_SIZE);
  const names = new Set(rows.map((row) => row.name));
  const focused = document.activeElement;
  for (const [name, item] of items) if (!names.has(name) && items.delete(name)) item.remove();
  rows.forEach((row, position) => {
    const item = items.get(row.name) ?? makeItem(row.name);
    drawItem(item, row, at);
    if (list.children[position] !== item) list.insertBefore(item, list.children[position] ?? null);
  });
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  byId('none').hidden = rows.length > 0;
  byId('pages').hidden = matching.length <= PAGE_SIZE;
  setText(byId('range'), `${count(from + 1)} to ${count(from + rows.length)} of ${count(matching.length)}`);
  byId('previous').disabled = from === 0;
  byId('next').disabled = from + PAGE_SIZE >= matching.length;
}

function makeItem(name) {
  const item = byId('grant').content.firstElementChild.cloneNode(true);
  item.parts = Object.fromEntries([...item.querySelectorAll('[class]')].map((part) => [part.className, part]));
  const { open, details } = item.parts;
  details.id = `details-${name}`;
  open.setAttribute('aria-controls', details.id);
  open.addEventListener('click', () => {
    if (!opened.delete(name)) opened.add(name);
    draw();
  });
  setText(item.parts.name, name);
  items.set(name, item);
  return item;
}

function drawItem(item, row, at) {
  const { parts } = item;
  const { error, end, issued_at: issued, expires_at: expires, next_rotation_at: next } = row;
  const life = expires - issued;
  const isTimed = issued !== null && isTime(expires);
  item.dataset.group = row.group;
  for (const [key, text] of Object.entries(row.shown)) setText(parts[key], text, text);
  setText(parts.words, stateWords(row, at));
  parts.bar.hidden = !(isTimed && life > 0);
  parts.bar.style.setProperty('--left', Math.max(0, Math.min(1, (expires - at) / life)) || 0);
  parts.mark.hidden = !(next > at && next < expires);
  parts.mark.style.setProperty('--at', (expires - next) / life);
  const left = expires > at ? `${span(expires - at)} of ${span(life)} left` : `expired ${relative(expires, at)}`;
  setTime(parts.expires, isTimed ? expires : null, isTimed ? left : issued === null ? 'none known' : 'no end known');
  setTime(parts.next, next, isTime(next) ? relative(Math.max(next, at), at) : 'none planned');
  setTime(parts.end, end?.at, end ? relative(end.at, at) : 'no end known');
  setText(parts.kind, end && end.kind !== 'login' ? `(${plain(end.kind)})` : '');
  const advice = row.group === 'fresh' ? null : row.advice;
  const purpose = row.group === 'ending' ? `Before the ${plain(end.kind)} ends:` : 'To mend it:';
  parts.problem.hidden = !error && !advice;
  setText(parts.error.firstElementChild, error ? error.description : purpose);
  setTime(parts.when, error?.at, isTime(error?.at) ? relative(error.at, at) : '');
  const isPlanned = isTime(error?.retry_at) && error.retry_at > at;
  setTime(parts.retry, error?.retry_at, isPlanned ? `next attempt ${relative(error.retry_at, at)}` : '');
  parts.command.hidden = !advice;
  setText(parts.advice, advice ?? '');
  setText(parts.unseen, ` the command for ${row.name}`);
  const detailed = opened.has(row.name) ? row : null;
  parts.open.setAttribute('aria-expanded', detailed !== null);
  parts.details.hidden = detailed === null;
  if (detailed && detailed !== item.detailed) drawDetails(parts.details, row, at);
  item.detailed = detailed;
}

function search() {
  const { group, text } = Object.fromEntries(new FormData(byId('search')));
  show({ group, text, page: 0 });
  if (text) setText(byId('announcer'), `${count(matching.length)} found.`);
}

function show(changed) {
  view = { ...view, ...changed };
  arranged = 0;
  draw();
}

function turn(pages) {
  show({ page: view.page + pages });
  byId('list').focus(); // the button may be disabled now
}

async function copy(button) {
  const command = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(command.textContent);
  } catch {
    getSelection().selectAllChildren(command); // over plain HTTP, a browser copies only what is selected
    document.execCommand('copy');
  }
  button.classList.add('copied');
  setText(byId('announcer'), 'Copied.');
  setTimeout(() => button.classList.remove('copied'), 2000);
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-copy]');
  if (button) copy(button);
});
byId('search').addEventListener('submit', (event) => event.preventDefault());
byId('search').addEventListener('input', search);
byId('search').addEventListener('reset', () => setTimeout(() => { // the values change after the event
  search();
  byId('list').focus();
}));
byId('previous').addEventListener('click', () => turn(-1));
byId('next').addEventListener('click', () => turn(1));
setInterval(() => document.hidden || draw(), 1000);
setInterval(check, SILENCE_MS / 3);
document.addEventListener('visibilitychange', check);
connect();

// Shows the details of one grant: what happened in the last day, and all that is known of it.

import { ask, count, DAY, element, full, isTime, minute, moment, plain, setText, STATES } from './elements.js';

const LINES = 100; // of the history
const LATER_MS = 3_000;
// What differs each time and matters no more.
const BEGIN = ['rotated', 'logged_in', 'imported', 'recovered']; // kinds that can begin a generation
const PASSING = /^valid for [^;]*; next rotation in [^;]*(; )?|; next attempt in [^;]*$/g;
const SOURCES = { server: ', from the server', profile: ', known of such servers' };
const EVENTS = {
  demanded: 'An agent demanded a new token', rotated: 'New token', published: 'Token published again',
  recovered: 'An interrupted rotation was completed', login_ending: 'The login ends soon', logged_in: 'Logged in',
  imported: 'Imported', removed: 'Removed',
  moved: 'Moved to another store',
};

export function drawDetails(details, row, at) {
  if (!details.firstChild) details.append(document.getElementById('more').content.cloneNode(true));
  const time = (when) => (isTime(when) ? moment(when, full) : null);
  const facts = {
    Error: row.error && `${row.error.code}: ${row.error.description}`,
    State: row.state,
    'Failures in a row': row.failures || null,
    Generation: row.generation,
    'Last rotation': time(row.last_rotation_at),
    'Token issued': time(row.issued_at),
    'Token expires': time(row.expires_at),
    Account: [row.account?.label, row.account?.subject].filter(Boolean).join(', '),
    'Account at': row.account?.issuer,
    Server: row.resource,
    'Authorization server': row.issuer,
    'Tokens are for': row.origins?.join(', '),
    Scope: row.scope,
  };
  for (const { kind, at: end, source } of row.ends ?? []) {
    const name = kind === 'refresh_token' ? 'refresh token, if not used' : plain(kind);
    facts[`End of the ${name}${SOURCES[source] ?? ''}`] = time(end);
  }
  const known = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== '');
  details.querySelector('dl').replaceChildren(...known.map(([label, value]) => {
    const shown = value instanceof Element ? value : element('bdi', value);
    const fact = element('div', element('dt', label), element('dd', shown));
    fact.classList.toggle('wide', String(value).length > 60);
    return fact;
  }));
  drawHistory(details, row.name, at);
  setTimeout(drawHistory, LATER_MS, details, row.name, at); // an event can come into the history after the row
}

async function drawHistory(details, name, at) {
  const note = details.querySelector('.note');
  try {
    const answer = await ask(`/history?name=${encodeURIComponent(name)}`);
    const events = (await answer.json()).events.filter((event) => isTime(event.at)).sort((a, b) => a.at - b.at);
    const lines = historyLines(events).reverse();
    details.querySelector('.strip').replaceChildren(...events.slice(-500).map((event) => {
      const mark = element('i');
      mark.className = severity(event);
      mark.style.left = `${Math.max(0, Math.min(100, 100 - ((at - event.at) / DAY) * 100))}%`;
      return mark;
    }));
    details.querySelector('.events').replaceChildren(...lines.slice(0, LINES).map(historyItem));
    const more = lines.length > LINES ? `And ${count(lines.length - LINES)} earlier lines.` : '';
    setText(note, lines.length ? more : 'The history of the last day is empty.');
  } catch {
    setText(note, 'The history cannot be loaded at the moment. Close this grant and open it again.');
  }
}

function severity(event) {
  if (event.kind === 'failed') return event.outcome in STATES ? 'person' : 'failing';
  if (event.kind === 'state_changed') return { active: 'fresh', failing: 'failing' }[event.state] ?? 'person';
  return { login_ending: 'ending', removed: 'person', demanded: 'other', published: 'other' }[event.kind] ?? 'fresh';
}

function eventWords(event) {
  if (event.kind === 'failed') return event.detail ? 'Failed' : `Failed: ${plain(event.outcome)}`;
  if (event.kind === 'state_changed') return `Now: ${STATES[event.state] ?? plain(event.state)}`;
  if (event.outcome === 'adopted') return 'New token, from another process';
  const words = EVENTS[event.kind] ?? plain(event.kind);
  return event.kind === 'rotated' && event.demanded ? `${words}, demanded by an agent` : words;
}

// Returns lines, oldest first. Equal events in a row are one line.
function historyLines(events) {
  const lines = [];
  const add = (at, text, kind, detail) => {
    const last = lines.at(-1);
    if (last?.text === text && last.detail === detail) Object.assign(last, { at, times: last.times + 1 });
    else lines.push({ at, first: at, times: 1, text, kind, detail });
  };
  let generation = null;
  for (const event of events) {
    if (event.kind === 'published' && event.generation === generation) continue; // a rotation implies it
    if (BEGIN.includes(event.kind) && event.generation != null) {
      const next = (generation ?? event.generation) + 1;
      const last = event.generation - 1;
      const missing = last === next ? `generation ${next}` : `the generations ${next} to ${last}`;
      if (last >= next) add(event.at, `No history of ${missing}`, 'other', '');
      generation = event.generation;
    }
    const detail = (event.detail ?? '').replace(PASSING, '');
    const isSaid = event.kind === 'state_changed' && lines.at(-1)?.detail === detail;
    add(event.at, eventWords(event), severity(event), isSaid ? '' : detail);
  }
  return lines;
}

function historyItem(line) {
  const shape = element('i');
  shape.className = `shape ${line.kind}`;
  const item = element('li', moment(line.at, minute), shape, line.text);
  if (line.times > 1) item.append(`, ${count(line.times)} times since `, moment(line.first, minute));
  if (line.detail) item.append(': ', element('bdi', line.detail));
  return item;
}

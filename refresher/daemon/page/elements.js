// Requests, times and elements that the other modules share. An element gets text from a server only as text.

export const DAY = 86400;
export const STATES = {
  active: 'Fresh',
  failing: 'Failing',
  reauthorization_required: 'Needs a new login',
  invalid_grant_file: 'Invalid grant file',
};

const PATIENCE_MS = 10_000;

// The address of the page can contain a password, and `fetch` refuses such an address.
export const ask = (path) => fetch(new URL(path, location.origin), { signal: AbortSignal.timeout(PATIENCE_MS) });
export const isTime = (at) => Number.isFinite(at) && Math.abs(at) < 8.64e12;
const calendar = new Intl.DateTimeFormat('sv-SE', {
  year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit',
  timeZoneName: 'short',
});
export const full = (at) => calendar.format(at * 1000); // for example 2026-11-28 19:13:04 UTC
export const minute = (at) => full(at).slice(11, 16);
export const count = (number) => number.toLocaleString('en');
export const plain = (code) => String(code).replaceAll('_', ' ');

export function span(seconds) {
  const whole = Math.round(Math.abs(seconds));
  const two = (large, unit, small, other) => `${count(Math.floor(large))} ${unit}${small ? ` ${small} ${other}` : ''}`;
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  if (whole < 2 * DAY) return two(whole / 3600, 'h', Math.floor((whole % 3600) / 60), 'min');
  return two(whole / DAY, 'd', whole < 10 * DAY ? Math.floor((whole % DAY) / 3600) : 0, 'h');
}

export function relative(at, from) {
  if (Math.abs(at - from) < 1) return 'now';
  return at > from ? `in ${span(at - from)}` : `${span(at - from)} ago`;
}

export function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

export function moment(at, format) {
  const made = element('time');
  setTime(made, at, format(at));
  return made;
}

export function setTime(time, at, text) {
  const isKnown = isTime(at);
  setText(time, text, isKnown ? full(at) : '');
  time.classList.toggle('quiet', !isKnown);
  const machine = isKnown ? new Date(at * 1000).toISOString() : '';
  if (time.dateTime !== machine) time.dateTime = machine;
}

export function setText(node, text, title = '') {
  if (node.textContent !== text) node.textContent = text;
  if (node.title !== title) node.title = title;
}

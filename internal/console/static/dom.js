// Small things the page is made of. Everything that came from outside enters
// the document through textContent only.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Writes only what changed: a live region is read out at every write.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A colour for each name, so that two gateways, or two people, look it.
export function hue(name) {
  let h = 0;
  for (const ch of name) h = (h * 31 + ch.codePointAt(0)) >>> 0;
  return (h * 47) % 360;
}

export function avatar(name, room = false) {
  const node = make('span', room ? 'avatar room' : 'avatar', room ? '#' : [...name][0].toUpperCase());
  node.setAttribute('aria-hidden', 'true');
  if (!room) node.style.setProperty('--hue', hue(name));
  return node;
}

// The hour, and the day when it isn't today.
export function clock(at) {
  const date = new Date(at);
  const day = date.toDateString() === new Date().toDateString() ? {} : { month: 'short', day: 'numeric' };
  return date.toLocaleString([], { ...day, hour: '2-digit', minute: '2-digit' });
}

export function count(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

// The page: names, conversations, and what the cluster says about each
// message. Everything that came from outside enters the document through
// textContent only.

import { Session, newID } from './session.js';
import { FramesPanel } from './frames.js';

const PRESENCE_EVERY_MS = 4_000;
const MESSAGES_MAX = 500; // kept on the page for each conversation
const DEVICE_KEY = 'chatgate.device';

const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

let user = '';
let current = null;              // the conversation shown
const conversations = new Map(); // peer's name -> conversation
const sent = new Map();          // message id -> {to, content, ack}: ours, on the page
const frames = new FramesPanel($('frames'));

const session = new Session(new URL('ws', location.href.replace(/^http/, 'ws')), {
  state: showState,
  frame: (direction, text, type) => frames.add(direction, text, type),
  message: received,
  ack: (ack, ms) => setAck(ack.id, ack.status, ackText(ack, ms), ack),
  refused,
  presence: showPresence,
  gap: showGap,
});

// ---- entering and leaving --------------------------------------------------

// A device id for this tab. A duplicated tab copies sessionStorage, so two tabs
// can have one id: the gateway then ends the older one with 4502, and the
// notice offers a new id.
function deviceID(fresh) {
  let id = fresh ? null : sessionStorage.getItem(DEVICE_KEY);
  if (!id) {
    id = `tab-${newID()}`;
    sessionStorage.setItem(DEVICE_KEY, id);
  }
  return id;
}

function enter(name, to) {
  if (name !== user) {
    conversations.clear();
    sent.clear();
    current = null;
    $('people').querySelector('ul').replaceChildren();
    $('threads').replaceChildren();
  }
  user = name;
  $('door').hidden = true;
  $('app').hidden = false;
  $('me').querySelector('b').textContent = user;
  $('enter-error').textContent = '';
  if (to) open(to);
  show(current);
  (current ? $('text') : $('add-name')).focus();
  session.start(user, deviceID(false));
}

function leave(error = '') {
  session.stop();
  $('app').hidden = true;
  $('door').hidden = false;
  $('enter-user').value = user;
  $('enter-to').value = current?.name ?? '';
  $('enter-error').textContent = error;
  $('enter-user').focus();
  document.title = 'Chatgate';
  history.replaceState(null, '', location.pathname);
}

const link = (name, to) => `?${new URLSearchParams(to ? { user: name, to } : { user: name })}`;

// ---- the connection --------------------------------------------------------

let notice = null;
let countdown = 0;

function showState(state) {
  const ready = state.name === 'ready';
  const words = {
    idle: 'not connected',
    connecting: 'connecting …',
    registering: state.why ? `waiting: ${state.why.code}` : 'registering …',
    ready: state.degraded ? 'connected, degraded' : 'connected',
    waiting: 'reconnecting …',
    ended: 'disconnected',
  };
  $('state').dataset.state = state.degraded ? 'degraded' : state.name;
  setText($('state'), words[state.name]);
  $('state').title = state.degraded ? 'The gateway can’t reach Redis: messages are refused until it can.' : '';

  $('gateway').hidden = !ready;
  if (ready) {
    const id = state.registered.gatewayId;
    setText($('gateway').querySelector('b'), id);
    $('gateway').style.setProperty('--hue', hue(id));
  } else {
    for (const c of conversations.values()) setPresence(c, { state: 'unknown' });
  }

  clearInterval(countdown);
  if (state.name === 'waiting') {
    // The seconds are on the button: the text is an alert, read out at each change.
    const tick = () => {
      const s = Math.max(0, Math.ceil((state.at - Date.now()) / 1000));
      showNotice(`Connection lost: ${reason(state.why)}. Trying again.`, s > 0 ? `Try now (${s} s)` : 'Try now', () => session.start(user, deviceID(false)));
    };
    tick();
    countdown = setInterval(tick, 1000);
  } else if (state.name === 'ended') {
    ended(state.why);
  } else if (ready || state.name === 'idle') {
    showNotice('');
  }
  if (ready) pollPresence();
}

// The gateway said not to come back, so only a person can.
function ended(why) {
  if (why.code === 0) return leave(`The gateway doesn’t let “${user}” in: ${why.reason || why.name}`);
  if (why.code === 4502) {
    showNotice(
      `“${user}” was opened elsewhere on this device (a duplicate of this tab, perhaps), or in one tab more than a user may have. The newest one stays: ${reason(why)}.`,
      'Connect here as a new device',
      () => session.start(user, deviceID(true)),
    );
  } else {
    showNotice(`The gateway ended this connection for good: ${reason(why)}.`, 'Connect again', () => session.start(user, deviceID(false)));
  }
}

function reason(why) {
  const text = why.reason || { 1001: 'the gateway goes away', 1006: 'the line was cut', 1011: 'an error in the gateway' }[why.code] || '';
  return `${text}${text ? ' ' : ''}(${why.code}${why.by ? `, by ${why.by}` : ''})`;
}

function showNotice(text, label, run) {
  $('notice').hidden = !text;
  setText($('notice').querySelector('p'), text);
  const button = $('notice').querySelector('button');
  setText(button, label ?? '');
  button.onclick = run;
}

// ---- conversations ---------------------------------------------------------

function conversation(name) {
  const known = conversations.get(name);
  if (known) return known;

  const item = make('li');
  const button = make('button', 'person');
  const dot = make('i', 'dot');
  const dotText = make('span', 'unseen');
  const badge = make('span', 'badge');
  button.append(dot, make('span', 'name', name), dotText, badge);
  button.onclick = () => { open(name); $('text').focus(); };
  item.append(button);
  $('people').querySelector('ul').append(item);

  const thread = make('div', 'scroller');
  thread.tabIndex = 0;
  thread.hidden = true;
  const log = make('div', 'thread');
  log.setAttribute('role', 'log');
  log.setAttribute('aria-label', `Messages with ${name}`);
  thread.append(log);
  $('threads').append(thread);

  const c = { name, button, dot, dotText, badge, thread, log, unread: 0, presence: { state: 'unknown' } };
  conversations.set(name, c);
  setPresence(c, c.presence);
  return c;
}

function open(name) {
  show(conversation(name));
  pollPresence();
}

function show(c) {
  current = c;
  for (const other of conversations.values()) {
    other.thread.hidden = other !== c;
    other.button.toggleAttribute('aria-current', other === c);
  }
  $('peer').hidden = $('compose').hidden = !c;
  $('nobody').hidden = !!c;
  history.replaceState(null, '', link(user, c?.name));
  if (c) {
    $('peer').querySelector('h2').textContent = c.name;
    $('peer-tab').textContent = `Open ${c.name} in a new tab`;
    $('peer-tab').href = link(c.name, user);
    setPresence(c, c.presence);
    c.unread = 0;
  }
  showUnread();
}

function showUnread() {
  let total = 0;
  for (const c of conversations.values()) {
    total += c.unread;
    c.badge.textContent = c.unread || '';
    c.badge.setAttribute('aria-label', c.unread ? `${c.unread} unread` : '');
  }
  document.title = `${total ? `(${total}) ` : ''}${user} · Chatgate`;
}

// ---- messages --------------------------------------------------------------

$('compose').onsubmit = (event) => {
  event.preventDefault();
  const content = $('text').value;
  if (!content.trim() || !current) return;
  const max = session.registered?.maxFrameBytes ?? 65_536;
  const size = session.size(current.name, content);
  if (size > max) {
    $('text-error').textContent = `Too long: ${size} bytes as a frame, and the gateway takes ${max}.`;
    return;
  }
  $('text-error').textContent = '';
  const id = session.send(current.name, content);
  if (id === null) {
    $('text-error').textContent = 'Too many messages are waiting for the gateway.';
    return;
  }
  $('text').value = '';
  const ack = make('span', 'ack');
  sent.set(id, { to: current.name, content, ack });
  addMessage(current, { className: 'mine', content, at: Date.now(), extra: ack, id });
  setAck(id, 'sending', session.registered ? 'sending …' : 'waits for the connection');
};

function received(m) {
  if (m.room !== undefined) return; // rooms are not on this page yet
  if (m.own && sent.has(m.id)) return; // our own copy of what is already shown
  const c = conversation(m.own ? m.to : m.from);
  addMessage(c, { className: m.own ? 'mine' : 'theirs', content: m.content, at: m.ts, extra: positionOf(m) });
  if (!current) show(c);
  else if (c !== current || document.hidden) c.unread++;
  showUnread();
}

function addMessage(c, { className, content, at, extra, id }) {
  const node = make('div', `message ${className}`);
  if (id) node.dataset.id = id;
  const text = typeof content === 'string';
  const line = make('p', 'meta');
  const time = make('time', '', new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }));
  time.title = new Date(at).toISOString();
  line.append(time, extra);
  node.append(make('span', 'unseen', className === 'mine' ? 'You:' : `${c.name}:`));
  node.append(make(text ? 'p' : 'pre', 'content', text ? content : JSON.stringify(content, null, 1)), line);
  place(c, node);
}

function place(c, node) {
  c.log.append(node);
  while (c.log.childElementCount > MESSAGES_MAX) {
    sent.delete(c.log.firstElementChild.dataset.id);
    c.log.firstElementChild.remove();
  }
  if (node.classList.contains('mine')) c.thread.scrollTop = 0; // the bottom, see .scroller
}

function positionOf({ epoch, offset, ephemeral }) {
  const node = make('span', 'position', epoch === undefined ? (ephemeral ? 'not stored' : '') : `#${offset}`);
  if (epoch !== undefined) node.title = `offset ${offset} of epoch ${epoch}`;
  return node;
}

function ackText(ack, ms) {
  const devices = ack.devices === undefined ? '' : ` to ${ack.devices} ${ack.devices === 1 ? 'device' : 'devices'}`;
  const words = { routed: `routed${devices}`, stored: 'stored', dropped: 'dropped, nobody there' };
  return `${words[ack.status] ?? ack.status} · ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

function setAck(id, status, text, position) {
  const ack = sent.get(id)?.ack;
  if (!ack) return;
  ack.dataset.status = status;
  ack.replaceChildren(text);
  if (position?.epoch !== undefined) ack.append(' ', positionOf(position));
}

function refused(error) {
  const wait = error.retryAfterMs ? `, again in ${Math.ceil(error.retryAfterMs / 1000)} s` : '';
  const text = `${error.code}: ${error.message ?? ''}${wait}`;
  const message = sent.get(error.id);
  if (!message) return frames.add('note', `error without a message: ${text}`);
  setAck(error.id, 'error', text);
  // The same id: if the first try was stored after all, it isn't stored twice.
  const again = make('button', '', 'Try again');
  again.onclick = () => {
    if (session.send(message.to, message.content, error.id) !== null) {
      setAck(error.id, 'sending', session.registered ? 'sending …' : 'waits for the connection');
    }
  };
  message.ack.append(' ', again);
}

// Either the gateway's `gap` frame, or what the session worked out from the
// positions of a reconnect.
function showGap(gap) {
  let text;
  if (gap.type === 'gap') {
    text = `Messages ${gap.from} to ${gap.to ?? 'an unknown end'} are missing: ${gap.reason}.`;
  } else if (gap.asked.epoch === gap.got.epoch) {
    text = `Away from offset ${gap.asked.offset} to ${gap.got.offset}: what came between is kept in your log, but was not sent again.`;
  } else {
    text = 'The log began a new epoch while this tab was away: messages may be missing.';
  }
  for (const c of conversations.values()) place(c, make('div', 'gap', text));
}

// ---- presence --------------------------------------------------------------

function pollPresence() {
  if (!document.hidden) session.askPresence([...conversations.keys()].slice(-50));
}

function showPresence(users) {
  for (const [name, presence] of Object.entries(users)) {
    const c = conversations.get(name);
    if (c) setPresence(c, presence);
  }
}

function setPresence(c, presence) {
  c.presence = presence;
  const devices = presence.devices > 1 ? `, ${presence.devices} devices` : '';
  const seen = presence.state === 'offline' && presence.lastSeen ? `, last seen ${new Date(presence.lastSeen).toLocaleTimeString()}` : '';
  const text = `${presence.state}${devices}${seen}`;
  c.dot.dataset.state = presence.state;
  setText(c.dotText, `, ${presence.state}`);
  if (c === current) {
    $('peer').dataset.state = presence.state;
    setText($('peer-presence'), text);
  }
}

// ---- small things ----------------------------------------------------------

// Writes only what changed: a live region is read out at every write.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A colour for each gateway, so that two tabs on two gateways look it.
function hue(id) {
  let h = 0;
  for (const ch of id) h = (h * 31 + ch.codePointAt(0)) >>> 0;
  return h % 360;
}

function showFrames(on) {
  $('frames').hidden = !on;
  $('app').classList.toggle('with-frames', on);
  $('frames-toggle').setAttribute('aria-expanded', String(on));
}

$('enter').onsubmit = (event) => {
  event.preventDefault();
  // Trimmed: a phone's keyboard adds a space, and “bob ” is another user.
  enter($('enter-user').value.trim(), $('enter-to').value.trim());
};
$('add').onsubmit = (event) => {
  event.preventDefault();
  const name = $('add-name').value.trim();
  if (!name) return;
  $('add-name').value = '';
  open(name);
  $('text').focus();
};
$('text').onkeydown = (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('compose').requestSubmit();
};
$('leave').onclick = () => leave();
$('frames-toggle').onclick = () => showFrames($('frames').hidden);
document.onvisibilitychange = () => {
  if (document.hidden || !current) return;
  current.unread = 0;
  showUnread();
  pollPresence();
};
setInterval(pollPresence, PRESENCE_EVERY_MS);

showFrames(matchMedia('(min-width: 70rem)').matches);
const asked = new URLSearchParams(location.search);
if (asked.get('user')) enter(asked.get('user'), asked.get('to'));

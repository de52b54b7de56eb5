// The page: who you are, the conversations, and what the cluster says about
// each message. It wires the session (session.js) to what is seen.

import { Session } from './session.js';
import { FramesPanel } from './frames.js';
import { Here } from './here.js';
import { Talk, positionOf } from './talk.js';
import { readOlder } from './older.js';
import { showStatus } from './status.js';
import { $, clock, count, make, setText } from './dom.js';
import { nameFault, newID } from './rules.js';

const DEVICE_KEY = 'chatgate.device';
const TALKS_KEY = 'chatgate.talks';
const TYPING = 'typing';        // the content of a typing sign
const TYPING_EVERY_MS = 2_500;  // shorter than a sign is believed
const TYPING_CROWD_MAX = 50;    // in a fuller room nobody is told: there is always someone

const wide = matchMedia('(min-width: 52.01rem)');

let user = '';
let token = '';          // in memory alone: no address, no storage, no form that is sent has it
let current = null;      // the conversation shown
const talks = new Map(); // key of the target -> Talk
const sent = new Map();  // message id -> {talk, content, ack}: ours, on the page
const frames = new FramesPanel($('frames'));

const session = new Session(new URL('ws', location.href.replace(/^http/, 'ws')), {
  state: showState,
  frame: (direction, text, type) => frames.add(direction, text, type),
  message: received,
  ack: (ack, ms) => setAck(ack.id, ack.status, ackText(ack, ms), ack),
  refused,
  joined,
  notJoined,
  gap: showGap,
  presence: showPresence,
  members: (frame) => here.push(frame),
  unserved: (type) => type === 'watch' && $('app').classList.remove('with-presence'),
});

const here = new Here(
  (room, after) => session.members(room, after),
  (name) => open({ to: name }),
);

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

function enter(name, target, proof = '') {
  const fault = nameFault(name) || (target && nameFault(target.to ?? target.room));
  if (fault) return leave(fault, name);
  if (name !== user) {
    for (const talk of talks.values()) talk.remove();
    talks.clear();
    sent.clear();
    current = null;
  }
  user = name;
  token = proof;
  $('enter-token').value = '';
  $('door').hidden = true;
  $('app').hidden = false;
  $('me').querySelector('b').textContent = user;
  $('enter-error').textContent = '';
  session.start(user, deviceID(false), token);
  for (const kept of remembered()) talkWith(kept);
  if (target) show(talkWith(target));
  else show(current);
  focusOn(current ? 'text' : 'join-name');
}

function leave(error = '', name = user) {
  session.stop();
  $('app').hidden = true;
  $('door').hidden = false;
  $('enter-user').value = name;
  $('enter-to').value = current?.target.to ?? '';
  $('enter-room').value = current?.room ?? '';
  $('enter-token').value = token = '';
  $('enter-error').textContent = error;
  $(name && !$('enter-proof').hidden ? 'enter-token' : 'enter-user').focus();
  document.title = 'Chatgate';
  history.replaceState(null, '', location.pathname);
}

const link = (fields) => `?${new URLSearchParams(fields)}`;

// A reloaded tab finds its conversations again. What was said comes from the logs.
function remember() {
  sessionStorage.setItem(TALKS_KEY, JSON.stringify({ user, targets: Array.from(talks.values(), (talk) => talk.target).slice(-100) }));
}

function remembered() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(TALKS_KEY));
    return kept.user === user ? kept.targets : [];
  } catch {
    return [];
  }
}

// ---- the connection --------------------------------------------------------

let certain = false; // connected, and the gateway reaches Redis

function showState(state) {
  // Only who was refused needs to know of tokens.
  if (state.name === 'ended' && ['unauthorized', 'forbidden'].includes(state.why.name)) $('enter-proof').hidden = false;
  showStatus(state, user, again, leave);
  showCertain(state.name === 'ready' && !state.degraded);
}

function again(asNewDevice = false) {
  session.start(user, deviceID(asNewDevice), token);
}

// Nobody who can't know says who is there.
function showCertain(is) {
  here.stale(!is);
  if (is && !certain) {
    here.refresh();
    for (const talk of talks.values()) talk.readAgain();
  }
  certain = is;
  if (is) return;
  for (const talk of talks.values()) {
    talk.setPresence({ state: 'unknown' });
    showPeer(talk);
  }
}

// ---- conversations ---------------------------------------------------------

const keyOf = ({ to, room }) => (room === undefined ? `u:${to}` : `r:${room}`);

function talkWith(target) {
  const known = talks.get(keyOf(target));
  if (known) return known;
  const talk = new Talk(user, target, { open: (it) => open(it.target), older: (it) => readOlder(session, user, it), typing: showTyping });
  talks.set(keyOf(target), talk);
  $(talk.room === undefined ? 'people' : 'rooms').append(talk.entry);
  $('threads').append(talk.thread);
  talk.setPresence(talk.presence);
  enterRoom(talk);
  if (talk.room === undefined) session.watch(talk.name);
  remember();
  return talk;
}

function open(target) {
  show(talkWith(target));
  focusOn('text');
}

function close(talk) {
  if (talk.room === undefined) session.unwatch(talk.name);
  else session.leave(talk.room);
  for (const [id, message] of sent) if (message.talk === talk) sent.delete(id);
  talk.remove();
  talks.delete(keyOf(talk.target));
  remember();
  show(null);
  focusOn(talk.room === undefined ? 'add-name' : 'join-name');
}

function show(talk) {
  current = talk;
  for (const other of talks.values()) {
    other.thread.hidden = other !== talk;
    if (other === talk) other.button.setAttribute('aria-current', 'true');
    else other.button.removeAttribute('aria-current');
  }
  $('app').classList.toggle('talking', !!talk);
  $('peer').hidden = $('compose').hidden = $('middle').hidden = !talk;
  $('nobody').hidden = !!talk;
  history.replaceState(null, '', link(talk ? { user, ...talk.target } : { user }));
  here.show(talk?.room, user);
  $('text-error').textContent = '';
  if (talk) {
    const inRoom = talk.room !== undefined;
    $('peer').querySelector('h2').textContent = talk.name;
    $('peer').classList.toggle('of-room', inRoom);
    $('peer-tab').href = link(inRoom ? { room: talk.room } : { user: talk.name, to: user });
    $('peer-tab').title = inRoom ? `Join ${talk.name} as someone else, in a new tab` : `Be ${talk.name}, in a new tab`;
    $('peer-close').textContent = inRoom ? 'Leave room' : 'Close';
    $('text').placeholder = inRoom ? `Write to everybody in ${talk.name}` : `Write to ${talk.name}`;
    talk.unread = 0;
    showPeer(talk);
    showTyping(talk);
  } else {
    showTyping(null);
  }
  showUnread();
}

function showUnread() {
  let total = 0;
  for (const talk of talks.values()) {
    total += talk.unread;
    talk.showUnread();
  }
  setText($('back-unread'), total ? String(total) : '');
  document.title = `${total ? `(${total}) ` : ''}${user} · Chatgate`;
}

// ---- rooms -----------------------------------------------------------------

function enterRoom(talk) {
  if (talk.room === undefined || session.join(talk.room)) return;
  talk.note('This page is in too many rooms: leave another one.', 'gap');
}

function joined({ room }) {
  const talk = talks.get(keyOf({ room }));
  if (!talk) return;
  talk.in = true;
  talk.readAgain();
  showPeer(talk);
  if (talk === current) here.refresh();
}

function notJoined(room, error) {
  const talk = talks.get(keyOf({ room }));
  if (!talk) return;
  talk.in = false;
  talk.note(`You are not in this room. ${error.code}: ${error.message ?? ''}`, 'gap');
  showPeer(talk);
}

// ---- messages --------------------------------------------------------------

$('compose').onsubmit = (event) => {
  event.preventDefault();
  const content = $('text').value;
  if (!content.trim() || !current) return;
  const max = session.registered?.maxFrameBytes ?? 65_536;
  const size = session.size(current.target, content);
  if (size > max) {
    $('text-error').textContent = `Too long: ${size} bytes as a frame, and the gateway takes ${max}.`;
    return;
  }
  enterRoom(current); // if it was refused before
  const id = session.send(current.target, content);
  $('text-error').textContent = id === null ? 'Too many messages are waiting for the gateway.' : '';
  if (id === null) return;
  $('text').value = '';
  signalled = 0; // what is typed next is news again
  sent.set(id, { talk: current, content, ack: current.write(id, content).ack });
  setAck(id, 'sending', session.registered ? 'sending …' : 'waits for the connection');
};

function received(m, old) {
  if (m.ephemeral && m.content === TYPING) return showTyped(m);
  const mine = m.from === user;
  const talk = m.room === undefined ? talkWith({ to: mine ? m.to : m.from }) : talks.get(keyOf(m));
  if (!talk) return;
  const news = talk.add(m, mine && !old && !sent.has(m.id) ? 'from another tab' : '');
  talk.spoke(m.from, m.ts);
  if (!news || mine || old) return;
  if (!current && wide.matches) show(talk);
  else if (talk !== current || document.hidden) talk.unread++;
  showUnread();
}

function ackText(ack, ms) {
  const devices = ack.devices === undefined ? '' : ` to ${count(ack.devices, 'device')}`;
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
    if (session.send(message.talk.target, message.content, error.id) !== null) {
      setAck(error.id, 'sending', session.registered ? 'sending …' : 'waits for the connection');
    }
  };
  message.ack.append(' ', again);
}

// A gap in the inbox may have been a message of any of its conversations.
function showGap(gap) {
  const range = gap.to === undefined ? `from #${gap.from} on` : gap.to === gap.from ? `#${gap.from}` : `#${gap.from} to #${gap.to}`;
  const text = {
    trimmed: `Messages are missing here: ${range}. The log does not keep them any more.`,
    history: `Redis lost its memory here: messages ${range} may be missing.`,
    ahead: `Redis forgot messages that you have: ${range}.`,
  }[gap.reason] ?? `Messages are missing here: ${range} (${gap.reason}).`;
  for (const talk of talks.values()) if (talk.room === gap.room) talk.note(text, 'gap');
}

// ---- typing ----------------------------------------------------------------

let signalled = 0; // when we last told the current conversation that we type
let signalledTo = null;

$('text').oninput = () => {
  if (!current || !$('text').value.trim()) return;
  if (signalledTo === current && Date.now() - signalled < TYPING_EVERY_MS) return;
  if (current.room === undefined ? current.presence.state === 'offline' : here.count > TYPING_CROWD_MAX) return;
  signalled = Date.now();
  signalledTo = current;
  session.signal(current.target, TYPING);
};

// A sign opens no conversation: what would it say?
function showTyped(m) {
  if (m.from !== user) talks.get(keyOf(m.room === undefined ? { to: m.from } : m))?.typed(m.from, m.ts);
}

function showTyping(talk) {
  if (talk !== current) return;
  const text = talk?.typing ?? '';
  $('typing').classList.toggle('shown', text !== '');
  $('typing').setAttribute('aria-hidden', String(text === ''));
  if (text) setText($('typing').querySelector('span'), text); // the last words stay while they fade
}

// ---- presence --------------------------------------------------------------

function showPresence(users) {
  $('app').classList.add('with-presence');
  for (const [name, presence] of Object.entries(users)) {
    const talk = talks.get(keyOf({ to: name }));
    if (!talk) continue;
    talk.setPresence(certain ? presence : { state: 'unknown' });
    showPeer(talk);
  }
}

function showPeer(talk) {
  if (talk !== current) return;
  if (talk.room !== undefined) {
    delete $('peer').dataset.state;
    return setText($('peer-presence'), talk.in === undefined ? 'joining …' : talk.in ? '' : 'not joined');
  }
  // Not how many devices: those that come and go while others stay are told to nobody. The acks know.
  const { state, lastSeen } = talk.presence;
  const more = state === 'offline' && lastSeen ? `, last seen ${clock(lastSeen)}` : '';
  $('peer').dataset.state = state;
  setText($('peer-presence'), `${state}${more}`);
}

// ---- small things ----------------------------------------------------------

// Not on a phone: its keyboard would cover the page.
function focusOn(id) {
  if (!matchMedia('(pointer: coarse)').matches) $(id).focus();
}

function showFrames(on) {
  $('frames').hidden = !on;
  $('app').classList.toggle('with-frames', on);
  $('frames-toggle').setAttribute('aria-expanded', String(on));
}

// Trimmed: a phone's keyboard adds a space, and “bob ” is another user.
function takeName(input) {
  const name = input.value.trim();
  input.setCustomValidity(nameFault(name));
  if (!input.reportValidity()) return null;
  input.value = '';
  return name;
}

$('enter').onsubmit = (event) => {
  event.preventDefault();
  const room = $('enter-room').value.trim();
  const to = $('enter-to').value.trim();
  enter($('enter-user').value.trim(), room ? { room } : to ? { to } : null, $('enter-token').value.trim());
  if (room && to && !$('app').hidden && !nameFault(to)) talkWith({ to });
};
for (const [form, field, kind] of [['join', 'join-name', 'room'], ['add', 'add-name', 'to']]) {
  $(field).oninput = () => $(field).setCustomValidity('');
  $(form).noValidate = true;
  $(form).onsubmit = (event) => {
    event.preventDefault();
    const name = takeName($(field));
    if (name) open({ [kind]: name });
  };
}
$('text').onkeydown = (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('compose').requestSubmit();
};
$('back').onclick = () => show(null);
$('peer-close').onclick = () => close(current);
$('sign-out').onclick = () => leave();
$('frames-toggle').onclick = () => showFrames($('frames').hidden);
document.onvisibilitychange = () => {
  if (document.hidden || !current) return;
  current.unread = 0;
  showUnread();
};

showFrames(matchMedia('(min-width: 80rem)').matches);
const asked = new URLSearchParams(location.search);
const target = asked.get('room') ? { room: asked.get('room') } : asked.get('to') ? { to: asked.get('to') } : null;
if (asked.get('user')) {
  enter(asked.get('user'), target);
} else {
  $('enter-room').value = target?.room ?? '';
  $('enter-to').value = target?.to ?? '';
}

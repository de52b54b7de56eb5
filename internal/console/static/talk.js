// One conversation, with a person or in a room: its entry in the list, its
// messages in the order of the log, and who is typing.

import { avatar, clock, make, setText } from './dom.js';

const MESSAGES_MAX = 1_000; // what a log keeps; a reader who scrolled back may have more
const TYPING_MS = 5_000;    // how long a sign is believed
const TYPISTS_MAX = 20;
const SPOKE_MAX = 100;

export class Talk {
  presence = { state: 'unknown' };
  unread = 0;
  before = null;   // {epoch, offset}: what is older was not read yet; null: since this page came
  reading = false; // older messages
  #badge; #dot; #dotText; #log; #older; #end;
  #user;
  #nodes = new Map();   // (from, id) -> message
  #typists = new Map(); // name -> timer
  #spoke = new Map();   // name -> when it last said something
  #on;

  // on: {open, older, typing}: the entry was chosen, the top came in sight, someone began or ended to type.
  constructor(user, target, on) {
    this.target = target;
    this.room = target.room;
    this.name = target.room ?? target.to;
    this.#user = user;
    this.#on = on;
    this.#makeEntry();
    this.#makeThread();
  }

  #makeEntry() {
    this.entry = make('li');
    this.button = make('button', 'person');
    const face = avatar(this.name, this.room !== undefined);
    this.#dot = make('i', 'dot');
    this.#dotText = make('span', 'unseen presence');
    this.#badge = make('span', 'badge');
    if (this.room === undefined) face.append(this.#dot);
    const typing = make('span', 'writes');
    typing.setAttribute('aria-hidden', 'true');
    typing.append(make('i'), make('i'), make('i'));
    this.button.append(face, make('span', 'name', this.name), this.#dotText, typing, this.#badge);
    this.button.onclick = () => this.#on.open(this);
    this.entry.append(this.button);
  }

  #makeThread() {
    this.thread = make('div', 'scroller');
    this.thread.tabIndex = 0;
    this.thread.hidden = true;
    this.#log = make('div', this.room === undefined ? 'log' : 'log of-room');
    this.#log.setAttribute('role', 'log');
    this.#log.setAttribute('aria-label', this.room === undefined ? `Messages with ${this.name}` : `Messages in the room ${this.name}`);
    this.#older = make('button', 'older', 'Earlier messages');
    this.#older.onclick = () => this.#on.older(this);
    this.#end = make('p', 'older soft');
    this.#end.hidden = true;
    const column = make('div', 'thread');
    column.append(this.#older, this.#end, this.#log);
    this.thread.append(column);
    this.top = new IntersectionObserver(
      (entries) => entries.at(-1).isIntersecting && this.#on.older(this),
      { root: this.thread, rootMargin: '150px' },
    );
    this.top.observe(this.#older);
  }

  remove() {
    this.top.disconnect();
    for (const timer of this.#typists.values()) clearTimeout(timer);
    this.entry.remove();
    this.thread.remove();
  }

  // ---- messages ------------------------------------------------------------

  // One of ours that is on its way. Its place in the log is not known yet: it
  // stays behind what comes, until it comes itself.
  write(id, content) {
    const ack = make('span', 'ack');
    const node = this.#message({ from: this.#user, id, content, ts: Date.now() }, ack);
    node.dataset.pending = '';
    this.#log.append(node);
    group(node);
    this.#trim();
    this.thread.scrollTop = 0; // the bottom, see .scroller
    return { node, ack };
  }

  // The next message of the log; returns false when it was here already.
  add(m, tag = '') {
    const known = this.#nodes.get(key(m));
    const node = known ?? this.#message(m, positionOf(m), tag);
    if (known && m.epoch === undefined) return false;
    if (known) {
      known.position = { epoch: m.epoch, offset: m.offset };
      delete known.dataset.pending;
    }
    let last = this.#log.lastElementChild;
    while (last && last !== node && last.dataset.pending !== undefined) last = last.previousElementSibling;
    if (last !== node) {
      const follower = node.nextElementSibling;
      this.#log.insertBefore(node, last ? last.nextElementSibling : this.#log.firstElementChild);
      group(node, node.nextElementSibling, follower);
    }
    this.#trim();
    return !known;
  }

  // A page of what came before; returns how many of them were new here.
  prepend(messages) {
    const fresh = messages.filter((m) => !this.#nodes.has(key(m))).map((m) => this.#message(m, positionOf(m)));
    const first = this.#log.firstElementChild;
    this.#log.setAttribute('aria-live', 'off'); // nobody wants fifty old messages read out
    this.#log.prepend(...fresh);
    group(...fresh, first);
    setTimeout(() => this.#log.removeAttribute('aria-live'), 500);
    return fresh.length;
  }

  // A line in the conversation that nobody said.
  note(text, className = 'note') {
    const node = make('div', className, text);
    let last = this.#log.lastElementChild;
    while (last?.dataset.pending !== undefined) last = last.previousElementSibling;
    if (last?.textContent === text) return;
    this.#log.insertBefore(node, last ? last.nextElementSibling : this.#log.firstElementChild);
    group(node.nextElementSibling);
  }

  #message(m, extra, tag = '') {
    const mine = m.from === this.#user;
    const node = make('div', `message ${mine ? 'mine' : 'theirs'}`);
    node.dataset.from = m.from;
    node.key = key(m);
    if (m.epoch !== undefined) node.position = { epoch: m.epoch, offset: m.offset };
    this.#nodes.set(node.key, node);

    if (!mine && this.room !== undefined) node.append(avatar(m.from), make('p', 'who name', m.from));
    else node.append(make('span', 'unseen', mine ? 'You:' : `${m.from}:`));
    const text = typeof m.content === 'string';
    const content = make(text ? 'p' : 'pre', 'content', text ? m.content : JSON.stringify(m.content, null, 1));
    content.dir = 'auto';
    const line = make('p', 'meta');
    const time = make('time', '', clock(m.ts));
    time.title = new Date(m.ts).toISOString();
    line.append(time, extra);
    if (tag) line.append(make('span', 'tag', tag));
    node.append(content, line);
    return node;
  }

  // A reader who has scrolled back keeps what is there.
  #trim() {
    const max = Math.abs(this.thread.scrollTop) < 100 ? MESSAGES_MAX : 3 * MESSAGES_MAX;
    if (this.#log.childElementCount <= max) return;
    while (this.#log.childElementCount > max) {
      this.#nodes.delete(this.#log.firstElementChild.key);
      this.#log.firstElementChild.remove();
    }
    const oldest = Array.from(this.#log.children).find((node) => node.position);
    if (oldest) this.before = oldest.position;
    group(this.#log.firstElementChild);
    this.readable('Earlier messages');
  }

  // There is something older, and how to get it; or there is nothing.
  readable(label) {
    this.#older.hidden = false;
    this.#end.hidden = true;
    setText(this.#older, label);
    // The observer speaks up when something changes; here we want to hear what is.
    this.top.unobserve(this.#older);
    this.top.observe(this.#older);
  }

  // There is a connection again.
  readAgain() {
    if (!this.#older.hidden && !this.reading) this.readable('Earlier messages');
  }

  readingOn() { setText(this.#older, 'Reading …'); }

  // Something went wrong: only a person asks again.
  readableByHand(label) {
    this.top.unobserve(this.#older);
    setText(this.#older, label);
  }

  complete(text) {
    this.#older.hidden = true;
    this.#end.hidden = false;
    setText(this.#end, text);
  }

  // ---- in the list ---------------------------------------------------------

  setPresence(presence) {
    this.presence = presence;
    this.#dot.dataset.state = presence.state;
    setText(this.#dotText, this.room === undefined ? `, ${presence.state}` : '');
  }

  showUnread() {
    setText(this.#badge, this.unread ? String(this.unread) : '');
    this.#badge.setAttribute('aria-label', this.unread ? `${this.unread} unread` : '');
  }

  // ---- typing --------------------------------------------------------------

  // A sign may overtake the message it announced, or come after it.
  typed(name, ts) {
    if (ts <= (this.#spoke.get(name) ?? 0)) return;
    if (!this.#typists.has(name) && this.#typists.size >= TYPISTS_MAX) return;
    clearTimeout(this.#typists.get(name));
    this.#typists.set(name, setTimeout(() => this.#stopped(name), TYPING_MS));
    this.#showTyping();
  }

  spoke(name, ts) {
    this.#spoke.delete(name);
    this.#spoke.set(name, ts);
    if (this.#spoke.size > SPOKE_MAX) this.#spoke.delete(this.#spoke.keys().next().value);
    if (this.#typists.has(name)) this.#stopped(name);
  }

  #stopped(name) {
    clearTimeout(this.#typists.get(name));
    this.#typists.delete(name);
    this.#showTyping();
  }

  #showTyping() {
    this.button.classList.toggle('typed-to', this.#typists.size > 0);
    this.#on.typing(this);
  }

  // Who is typing, in words; '' for nobody.
  get typing() {
    const names = [...this.#typists.keys()];
    if (names.length === 0) return '';
    if (names.length === 1) return `${names[0]} is typing`;
    if (names.length === 2) return `${names[0]} and ${names[1]} are typing`;
    return `${names[0]}, ${names[1]} and ${names.length - 2} more are typing`;
  }
}

const key = ({ from, id }) => JSON.stringify([from, id]);

// Messages of one sender in a row stand together.
function group(...nodes) {
  for (const node of nodes) {
    const before = node?.previousElementSibling;
    node?.classList.toggle('follows', before?.dataset.from !== undefined && before.dataset.from === node.dataset.from);
  }
}

export function positionOf({ epoch, offset, ephemeral }) {
  const node = make('span', 'position', epoch === undefined ? (ephemeral ? 'not stored' : '') : `#${offset}`);
  if (epoch !== undefined) node.title = `offset ${offset} of epoch ${epoch}`;
  return node;
}

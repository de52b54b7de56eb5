// One user's session with the cluster: one WebSocket at a time, kept alive and
// replaced when it ends. It speaks docs/protocol.md and touches no DOM, so
// that the page (app.js) only has to show what happens.
//
// What it promises the page:
// - a message given to send() goes out in the order given, and again after a
//   reconnect with the same id, until it is answered; the id makes that safe;
// - a received message is reported once, whatever the gateways repeat;
// - after a lost connection it comes back by itself, unless the gateway said
//   not to: into its rooms, each from the last position, and to those watched;
// - a question is always answered, if only by an error with the code `gone`.

import { Seen } from './seen.js';
import { comebackDelay, comesBack, newID } from './rules.js';

const CONNECT_TIMEOUT_MS = 15_000; // for the socket to open, and then for `registered`
const ANSWER_TIMEOUT_MS = 10_000;  // a heartbeat unanswered for so long: the line is dead
const BEAT_MAX_MS = 10_000;        // a person looks on: sooner than the gateway wants
const BEAT_DEGRADED_MS = 2_000;    // how soon we hear that Redis is back
const STABLE_MS = 5_000;           // a connection that lived so long resets the backoff
const WAITING_MAX = 100;           // messages without an answer
const ROOMS_MAX = 100;             // all of them, with positions, fit one register
const WATCH_MAX = 200;             // and so many names one watch
const PASSING = ['unavailable', 'unknown', 'overloaded', 'limited', 'internal'];

// The answer to a question when there is nobody to answer it.
const GONE = { type: 'error', code: 'gone' };

// Whether an error passes by itself. A limit does when it says when; having too much of something doesn't.
const passes = (error) => PASSING.includes(error.code) && (error.code !== 'limited' || !!error.retryAfterMs);

// Somewhat later than asked for, and not all at once.
const again = (error) => (error.retryAfterMs ?? 1_000) * (1 + Math.random());

// A target is where a message goes: {to: 'bob'} or {room: 'lobby'}.
export class Session {
  #url;
  #on;        // {state, frame, message, ack, refused, joined, notJoined, gap, presence, members, unserved}, all functions
  #user = '';
  #device = '';
  #token = '';  // empty: none is shown
  #socket = null;
  #registered = null; // the gateway's answer, while it holds
  #degraded = false;  // what the last heartbeat said
  #closing = null;    // the gateway's last words on this socket
  #attempt = 0;
  #inbox = new Seen();
  #rooms = new Map();   // name -> {seen, joined}: those we mean to be in
  #watched = new Set(); // whose presence we want to hear of
  #waiting = new Map(); // id -> {frame, sentAt}: messages in the order sent, unanswered
  #questions = new Map(); // id -> resolve
  #unserved = new Set();  // types this gateway doesn't know
  #timers = {};

  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    addEventListener('online', () => this.#timers.comeback && this.#connect());
  }

  // The `registered` frame of the present connection, or null.
  get registered() { return this.#registered; }

  // Enters as user, from a device of that id, with a token where the gateway
  // wants one; also the way back after `ended`.
  start(user, device, token = '') {
    if (user !== this.#user) {
      this.#inbox = new Seen();
      for (const kept of [this.#rooms, this.#watched, this.#waiting]) kept.clear();
    }
    this.#user = user;
    this.#device = device;
    this.#token = token;
    this.#attempt = 0;
    this.#connect();
  }

  // Leaves for good: nothing comes back by itself after this.
  stop() {
    this.#token = '';
    this.#drop(1000);
    this.#on.state({ name: 'idle' });
  }

  // Sends now, or as soon as there is a connection, and the room is joined. To
  // try a message again, give its id: the gateway answers as it did the first
  // time. Returns null when too many are waiting.
  send(target, content, id = newID()) {
    if (this.#waiting.size >= WAITING_MAX && !this.#waiting.has(id)) return null;
    const item = { frame: this.#message(target, content, id), sentAt: 0 };
    this.#waiting.set(id, item);
    this.#put(item);
    return id;
  }

  // Bytes a message takes on the wire.
  size(target, content) {
    return new TextEncoder().encode(JSON.stringify(this.#message(target, content, '0'.repeat(36)))).length;
  }

  // Says something that is over in a moment, now or never.
  signal(target, content) {
    if (this.#ready(target.room)) this.#write({ type: 'message', ...target, content, ephemeral: true });
  }

  // Is in the room from now on, or as soon as there is a connection. Returns
  // false when those are too many.
  join(room) {
    if (this.#rooms.has(room)) return true;
    if (this.#rooms.size >= ROOMS_MAX) return false;
    this.#rooms.set(room, { seen: new Seen(), joined: false });
    if (this.#registered) this.#enter(room);
    return true;
  }

  leave(room) {
    this.#rooms.delete(room);
    this.#cancel(`join ${room}`);
    for (const [id, { frame }] of this.#waiting) if (frame.room === room) this.#waiting.delete(id);
    this.#ask('leave', { room });
  }

  // Where this page came into the log: before it lies what only history() has.
  beginning(room) {
    return (room === undefined ? this.#inbox : this.#rooms.get(room)?.seen)?.beginning ?? null;
  }

  // A page of what came before that offset, in the inbox or in a room.
  history(room, { epoch, offset }, limit) {
    return this.#ready(room) ? this.#ask('history', { room, epoch, before: offset, limit }) : Promise.resolve(GONE);
  }

  members(room, after) {
    return this.#ready(room) ? this.#try('members', { room, after }) : Promise.resolve(GONE);
  }

  watch(user) {
    this.#watched.delete(user);
    this.#watched.add(user); // the last ones are the ones that fit
    this.#follow([user]);
  }

  unwatch(user) {
    if (this.#watched.delete(user)) this.#try('unwatch', { users: [user] });
  }

  #message(target, content, id) {
    // Our other tabs want to see what this one says. In a room they are told anyway.
    return { type: 'message', id, ...target, content, copy: target.room === undefined ? true : undefined };
  }

  // ---- the connection ------------------------------------------------------

  #connect() {
    this.#drop();
    this.#on.state({ name: 'connecting' });
    const socket = new WebSocket(this.#url, 'chatgate.v1.json');
    this.#socket = socket;
    this.#answerSoon();
    socket.onopen = () => {
      this.#note('socket open');
      this.#register();
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lost(event.code, event.reason);
  }

  #answerSoon() {
    this.#after('connect', CONNECT_TIMEOUT_MS, () => this.#lost(1006, 'no answer from the gateway'));
  }

  #register() {
    this.#on.state({ name: 'registering' });
    this.#answerSoon();
    // Not by assignment: a room may be called __proto__.
    const rooms = Object.fromEntries(Array.from(this.#rooms, ([name, { seen }]) => [name, seen.position]));
    this.#write({
      type: 'register', userId: this.#user, token: this.#token || undefined, deviceId: this.#device,
      resume: this.#inbox.position ?? undefined, rooms: this.#rooms.size ? rooms : undefined,
    });
  }

  #receive(data) {
    this.#cancel('answer'); // any frame shows that the line lives
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      frame = {};
    }
    this.#on.frame('in', data, frame.type);
    switch (frame.type) {
      case 'registered': return this.#begin(frame);
      case 'heartbeat': return this.#beaten(!!frame.degraded);
      case 'message': return this.#take(frame);
      case 'ack': return this.#answered(frame, this.#on.ack);
      case 'error': return this.#refused(frame);
      case 'joined': return this.#joined(frame);
      case 'gap': return this.#gap(frame);
      case 'presence': this.#on.presence(frame.users ?? {}); break;
      case 'members': if (frame.id === undefined) this.#on.members(frame); break;
      case 'closing': this.#closing = frame;
    }
    this.#settle(frame);
  }

  #begin(frame) {
    this.#cancel('connect');
    this.#after('stable', STABLE_MS, () => { this.#attempt = 0; });
    this.#registered = frame;
    this.#degraded = false;
    this.#inbox.begin(frame);
    this.#on.state({ name: 'ready', registered: frame, degraded: false });
    for (const item of this.#waiting.values()) this.#put(item);
    this.#follow([...this.#watched].slice(-WATCH_MAX));
    this.#beatSoon();
  }

  #beatSoon() {
    const every = Math.min(this.#registered.heartbeatIntervalMs || BEAT_MAX_MS, this.#degraded ? BEAT_DEGRADED_MS : BEAT_MAX_MS);
    this.#after('beat', every, () => this.#beat());
  }

  #beat() {
    this.#write({ type: 'heartbeat' });
    this.#beatSoon();
    // Not armed twice: a tab in the background gets its timers late.
    if (!this.#timers.answer) this.#after('answer', ANSWER_TIMEOUT_MS, () => this.#lost(1006, 'no answer to a heartbeat'));
  }

  #beaten(degraded) {
    const changed = degraded !== this.#degraded;
    this.#degraded = degraded;
    this.#on.state({ name: 'ready', registered: this.#registered, degraded });
    if (!changed) return;
    this.#beatSoon();
    // What changed meanwhile was told to nobody.
    if (!degraded) this.#follow([...this.#watched].slice(-WATCH_MAX));
  }

  // The socket is gone, or given up. Decides once whether to come back.
  #lost(code, reason) {
    const closing = this.#closing;
    this.#note(`socket closed, code ${code}${reason ? ` ${reason}` : ''}`);
    this.#drop();
    // The last frame knows better than the close code: a proxy or a cut line
    // turns every code into 1006.
    const why = closing ?? { code, reason };
    if (!(closing ? closing.reconnect : comesBack(code))) {
      return this.#on.state({ name: 'ended', why });
    }
    const delay = comebackDelay(this.#attempt++, closing);
    this.#on.state({ name: 'waiting', why, at: Date.now() + delay });
    this.#after('comeback', delay, () => this.#connect());
  }

  // Forgets the socket and everything that hangs on it.
  #drop(code) {
    for (const name of Object.keys(this.#timers)) this.#cancel(name);
    this.#registered = null;
    this.#closing = null;
    this.#unserved.clear(); // the next gateway may be a newer one
    for (const room of this.#rooms.values()) room.joined = false;
    for (const id of [...this.#questions.keys()]) this.#settle({ ...GONE, id });
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code ?? 1000);
  }

  // ---- messages and rooms --------------------------------------------------

  #take(frame) {
    const room = this.#rooms.get(frame.room);
    if (frame.room !== undefined && !room?.joined) return this.#note('of a room that was left, not shown');
    const seen = room?.seen ?? this.#inbox;
    if (!seen.take(frame)) return this.#note('seen before, not shown');
    this.#on.message(frame, seen.isOld(frame));
  }

  #gap(frame) {
    const seen = frame.room === undefined ? this.#inbox : this.#rooms.get(frame.room)?.seen;
    if (!seen) return;
    if (frame.next) seen.raise(frame.next.epoch, frame.next.offset);
    this.#on.gap(frame);
  }

  async #enter(room) {
    const answer = await this.#ask('join', { room, resume: this.#rooms.get(room).seen.position ?? undefined });
    if (answer.type === 'error' && answer.code !== 'gone') this.#notJoined(room, answer);
  }

  #joined(frame) {
    const room = this.#rooms.get(frame.room);
    if (room) {
      room.joined = true;
      this.#cancel(`join ${frame.room}`);
      room.seen.begin(frame);
      this.#on.joined(frame);
      for (const item of this.#waiting.values()) if (item.frame.room === frame.room) this.#put(item);
    }
    this.#settle(frame);
  }

  #notJoined(name, error) {
    const room = this.#rooms.get(name);
    if (!room || room.joined) return;
    if (passes(error)) {
      this.#after(`join ${name}`, again(error), () => this.#enter(name));
    } else {
      this.#rooms.delete(name);
      this.#on.notJoined(name, error);
    }
  }

  // Asks for the presence of users, and for each change of it.
  async #follow(users) {
    if (!users.length) return;
    const answer = await this.#try('watch', { users });
    if (passes(answer)) {
      this.#after('watch', again(answer), () => this.#follow([...this.#watched].slice(-WATCH_MAX)));
    }
  }

  // ---- questions and answers -----------------------------------------------

  // A question of a type that not every gateway serves; it is asked no more then.
  async #try(type, fields) {
    if (this.#unserved.has(type)) return { type: 'error', code: 'unknown_type' };
    const answer = await this.#ask(type, fields);
    if (answer.code === 'unknown_type') {
      this.#unserved.add(type);
      this.#on.unserved(type);
    }
    return answer;
  }

  #ask(type, fields) {
    if (!this.#registered) return Promise.resolve(GONE);
    const id = newID();
    return new Promise((resolve) => {
      this.#questions.set(id, resolve);
      this.#write({ type, id, ...fields });
    });
  }

  #settle(frame) {
    const resolve = this.#questions.get(frame.id);
    this.#questions.delete(frame.id);
    resolve?.(frame);
    return !!resolve;
  }

  #refused(frame) {
    // Redis is away, perhaps: the heartbeat knows.
    if (frame.code === 'unavailable' && this.#registered && !this.#degraded && !this.#timers.answer) this.#beat();
    if (this.#settle(frame)) return;
    if (frame.id !== undefined) return this.#answered(frame, this.#on.refused);
    if (this.#registered) {
      if (!frame.rooms) return this.#on.refused(frame, 0); // about a signal
      for (const name of frame.rooms) this.#notJoined(name, frame);
      return;
    }
    // An error before `registered` is about the register frame. Some pass by
    // themselves; the gateway keeps the socket for a while so that we repeat.
    if (PASSING.includes(frame.code)) {
      this.#on.state({ name: 'registering', why: frame });
      this.#after('again', again(frame), () => this.#register());
    } else {
      this.#drop(1000);
      this.#on.state({ name: 'ended', why: { code: 0, name: frame.code, reason: frame.message } });
    }
  }

  #answered(frame, tell) {
    const item = this.#waiting.get(frame.id);
    this.#waiting.delete(frame.id);
    tell(frame, item?.sentAt ? performance.now() - item.sentAt : 0);
  }

  #ready(room) {
    return !!this.#registered && (room === undefined || !!this.#rooms.get(room)?.joined);
  }

  #put(item) {
    if (!this.#ready(item.frame.room)) return;
    item.sentAt = performance.now();
    this.#write(item.frame);
  }

  #write(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const text = JSON.stringify(frame);
    this.#socket.send(text);
    // Frames are shown, and copied into bug reports: a token is nobody else's.
    this.#on.frame('out', frame.token ? JSON.stringify({ ...frame, token: '…' }) : text, frame.type);
  }

  #note(text) { this.#on.frame('note', text); }

  #after(name, ms, run) {
    this.#cancel(name);
    this.#timers[name] = setTimeout(() => {
      delete this.#timers[name];
      run();
    }, ms);
  }

  #cancel(name) {
    clearTimeout(this.#timers[name]);
    delete this.#timers[name];
  }
}

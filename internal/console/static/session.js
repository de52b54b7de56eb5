// One user's session with the cluster: one WebSocket at a time, kept alive and
// replaced when it ends. It speaks docs/protocol.md and touches no DOM, so
// that the page (app.js) only has to show what happens.
//
// What it promises the page:
// - a message given to send() goes out in the order given, and again after a
//   reconnect with the same id, until it is answered; the id makes that safe;
// - a received message is reported once, whatever the gateways repeat;
// - after a lost connection it comes back by itself, unless the gateway said
//   not to.

const CONNECT_TIMEOUT_MS = 15_000; // for the socket to open, and then for `registered`
const ANSWER_TIMEOUT_MS = 10_000;  // a heartbeat unanswered for so long: the line is dead
const STABLE_MS = 5_000;           // a connection that lived so long resets the backoff
const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 30_000;
const CLOSING_WAIT_MAX_MS = 300_000; // however long a gateway asks us to stay away
const WAITING_MAX = 100;           // messages without an answer
const SEEN_MAX = 2_000;            // (from, id) pairs remembered
const EPOCHS_MAX = 8;

// The codes that mean "come back". 4000-4499 are the gateway's own; the rest
// are RFC 6455's for a server that leaves or breaks, and a line that is cut.
export function comesBack(code) {
  return (code >= 4000 && code <= 4499) || [1001, 1006, 1011, 1012, 1013].includes(code);
}

// crypto.randomUUID exists in secure contexts only: not on http://192.168.1.7.
export function newID() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const hex = Array.from(b, (x) => x.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

// Full jitter (any wait up to the limit, not around it), so that a thousand
// tabs of a killed gateway don't return in one wave. A `closing` frame says
// its own window: the gateway knows how many it is sending away.
function comebackDelay(attempt, closing) {
  if (closing && (closing.afterMs !== undefined || closing.windowMs !== undefined)) {
    const wait = (closing.afterMs ?? 0) + Math.random() * (closing.windowMs ?? BACKOFF_BASE_MS);
    return Math.min(wait, CLOSING_WAIT_MAX_MS);
  }
  return Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}

// Which messages were already shown. Two nets: the offset inside its epoch,
// and (from, id) for what comes again under another position.
class Seen {
  #tops = new Map();  // epoch -> highest offset given
  #pairs = new Set();
  position = null;    // {epoch, offset}: where to resume

  raise(epoch, offset) {
    const top = Math.max(offset, this.#tops.get(epoch) ?? 0);
    this.#tops.delete(epoch);
    this.#tops.set(epoch, top);
    if (this.#tops.size > EPOCHS_MAX) this.#tops.delete(this.#tops.keys().next().value);
    this.position = { epoch, offset: top };
  }

  // Reports whether the message is new, and remembers it.
  take({ from, id, epoch, offset }) {
    if (epoch !== undefined) {
      if (offset <= (this.#tops.get(epoch) ?? 0)) return false;
      this.raise(epoch, offset);
    }
    const pair = JSON.stringify([from, id]);
    if (this.#pairs.has(pair)) return false;
    this.#pairs.add(pair);
    if (this.#pairs.size > SEEN_MAX) this.#pairs.delete(this.#pairs.values().next().value);
    return true;
  }
}

export class Session {
  #url;
  #on;        // {state, frame, message, ack, refused, presence, gap}, all functions
  #user = '';
  #device = '';
  #socket = null;
  #registered = null; // the gateway's answer, while it holds
  #asked = null;      // the position the last register asked for
  #closing = null;    // the gateway's last words on this socket
  #attempt = 0;
  #seen = new Seen();
  #waiting = new Map(); // id -> {frame, sentAt}: in the order sent, unanswered
  #timers = {};

  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    addEventListener('online', () => this.#timers.comeback && this.#connect());
  }

  // The `registered` frame of the present connection, or null.
  get registered() { return this.#registered; }

  // Enters as user, from a device of that id; also the way back after `ended`.
  start(user, device) {
    if (user !== this.#user) {
      this.#seen = new Seen();
      this.#waiting.clear();
    }
    this.#user = user;
    this.#device = device;
    this.#attempt = 0;
    this.#connect();
  }

  // Leaves for good: nothing comes back by itself after this.
  stop() {
    this.#drop(1000);
    this.#on.state({ name: 'idle' });
  }

  // Sends now, or as soon as there is a connection. To try a message again,
  // give its id: the gateway answers as it did the first time. Returns null
  // when too many are waiting.
  send(to, content, id = newID()) {
    if (this.#waiting.size >= WAITING_MAX && !this.#waiting.has(id)) return null;
    const item = { frame: { type: 'message', id, to, content }, sentAt: 0 };
    this.#waiting.set(id, item);
    if (this.#registered) this.#put(item);
    return id;
  }

  // Bytes a message to this user with this content takes on the wire.
  size(to, content) {
    const frame = { type: 'message', id: '0'.repeat(36), to, content };
    return new TextEncoder().encode(JSON.stringify(frame)).length;
  }

  askPresence(users) {
    if (this.#registered && users.length) this.#write({ type: 'presence', id: newID(), users });
  }

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
    this.#asked = this.#seen.position;
    this.#on.state({ name: 'registering' });
    this.#answerSoon();
    const frame = { type: 'register', userId: this.#user, deviceId: this.#device };
    if (this.#asked) frame.resume = this.#asked;
    this.#write(frame);
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
      case 'registered': return this.#ready(frame);
      case 'heartbeat': return this.#on.state({ name: 'ready', registered: this.#registered, degraded: !!frame.degraded });
      case 'message': return this.#seen.take(frame) ? this.#on.message(frame) : this.#note('seen before, not shown');
      case 'ack': return this.#answered(frame, this.#on.ack);
      case 'error': return this.#refused(frame);
      case 'presence': return this.#on.presence(frame.users ?? {});
      case 'gap': return this.#gap(frame);
      case 'closing': this.#closing = frame;
    }
  }

  #ready(frame) {
    this.#cancel('connect');
    this.#after('stable', STABLE_MS, () => { this.#attempt = 0; });
    this.#registered = frame;
    this.#on.state({ name: 'ready', registered: frame, degraded: false });

    const asked = this.#asked;
    const behind = asked && (asked.epoch !== frame.epoch || asked.offset < frame.offset);
    if (behind && !frame.recovered) this.#on.gap({ asked, got: { epoch: frame.epoch, offset: frame.offset } });
    if (frame.epoch !== undefined) this.#seen.raise(frame.epoch, frame.offset);

    for (const item of this.#waiting.values()) this.#put(item);
    this.#timers.beat = setInterval(() => this.#beat(), frame.heartbeatIntervalMs || 30_000);
  }

  #beat() {
    this.#write({ type: 'heartbeat' });
    // Not armed twice: a tab in the background gets its timers late.
    if (!this.#timers.answer) this.#after('answer', ANSWER_TIMEOUT_MS, () => this.#lost(1006, 'no answer to a heartbeat'));
  }

  #gap(frame) {
    if (frame.room === undefined && frame.next) this.#seen.raise(frame.next.epoch, frame.next.offset);
    this.#on.gap(frame);
  }

  #refused(frame) {
    if (frame.id !== undefined) return this.#answered(frame, this.#on.refused);
    if (this.#registered) return this.#on.refused(frame, 0);
    // An error before `registered` is about the register frame. Some pass by
    // themselves; the gateway keeps the socket for a while so that we repeat.
    if (['unavailable', 'unknown', 'overloaded', 'limited', 'internal'].includes(frame.code)) {
      this.#on.state({ name: 'registering', why: frame });
      this.#after('again', (frame.retryAfterMs ?? 1_000) * (1 + Math.random()), () => this.#register());
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
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code ?? 1000);
  }

  #put(item) {
    item.sentAt = performance.now();
    this.#write(item.frame);
  }

  #write(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const text = JSON.stringify(frame);
    this.#socket.send(text);
    this.#on.frame('out', text, frame.type);
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
    clearTimeout(this.#timers[name]); // clears intervals too: they share one list
    delete this.#timers[name];
  }
}

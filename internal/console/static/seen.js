// What of one log, the own inbox or a room, has come already. Two nets: the
// offset inside its epoch, and (from, id) for what comes again under another
// position.

const PAIRS_MAX = 2_000;
const EPOCHS_MAX = 8;

export class Seen {
  #tops = new Map();  // epoch -> highest offset given
  #pairs = new Set();
  #backlog = null;    // {epoch, offset}: up to here it was there before we came
  position = null;    // {epoch, offset}: where to resume
  beginning = null;   // {epoch, offset}: where we came in; what is older is history

  // The gateway said where we go on: the first time, or after we were away.
  begin({ epoch, offset, top }) {
    if (!this.position) {
      this.beginning = { epoch, offset };
      this.#backlog = { epoch, offset: top };
    }
    this.raise(epoch, offset);
  }

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
    if (this.#pairs.size > PAIRS_MAX) this.#pairs.delete(this.#pairs.values().next().value);
    return true;
  }

  // Reports whether the message was there before this page was: nobody missed it.
  isOld({ epoch, offset }) {
    return epoch !== undefined && epoch === this.#backlog?.epoch && offset <= this.#backlog.offset;
  }
}

// Who is in the room that is shown: a list, read page by page and kept up by
// what the gateway pushes. It has one truth of its own: the count that comes
// with every frame. When the list disagrees with it, it is read again.

import { $, avatar, make, setText } from './dom.js';

const HEAL_MS = 3_000;
const REREAD_MS = 30_000; // a push may be lost, and a full room is told nothing

export class Here {
  #ask; #open; #me;
  #room;           // its name, or undefined when no room is shown
  #known = false;  // the gateway has answered
  #count = 0;
  #next;           // where the list goes on; undefined when all of it is here
  #rows = new Map(); // name -> li
  #turn = 0;       // of the question whose answer is wanted
  #missed = false; // something was pushed while we asked
  #healing = 0;
  #due = Infinity; // when the list is read again
  #paged = false;  // somebody asked for more than the first page
  #wanted = matchMedia('(min-width: 62rem)').matches;

  // ask(room, after) resolves to the answer or an error; open(name) opens a conversation.
  constructor(ask, open) {
    this.#ask = ask;
    this.#open = open;
    $('here-toggle').onclick = () => {
      this.#wanted = !this.#wanted;
      this.#show();
    };
    $('here-more').onclick = () => this.#more();
  }

  // Shows who is in this room, for this user; undefined: nothing.
  show(room, me) {
    this.#me = me;
    this.#room = room;
    this.#forget();
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.#healing);
    this.#due = Infinity;
    const turn = ++this.#turn;
    if (this.#room === undefined) return;
    this.#missed = false;
    const answer = await this.#ask(this.#room);
    if (turn !== this.#turn) return;
    if (answer.type === 'error') {
      // Asked again when the room is joined again, and when Redis is back; a
      // gateway that knows no lists is not asked any more.
      if (answer.retryAfterMs) this.#heal(answer.retryAfterMs);
      if (answer.code === 'unknown_type') this.#forget();
      return;
    }
    this.#known = true;
    this.#count = answer.count;
    const users = answer.users ?? [];
    const last = answer.next === undefined ? undefined : users.at(-1);
    // The pages behind this one stay as they are.
    for (const name of [...this.#rows.keys()]) {
      if (!users.includes(name) && (!this.#paged || last === undefined || name <= last)) this.#remove(name);
    }
    if (!this.#paged || last === undefined) this.#next = answer.next;
    for (const name of users) this.#add(name);
    this.#show();
    this.#heal(this.#missed ? HEAL_MS : REREAD_MS);
  }

  push({ room, count, joined = [], left = [] }) {
    if (room !== this.#room) return;
    this.#missed = true;
    if (!this.#known) return;
    for (const name of left) this.#remove(name);
    for (const name of joined) this.#add(name);
    this.#count = count ?? this.#count;
    this.#show();
    if (this.#next === undefined && this.#rows.size !== this.#count) this.#heal(HEAL_MS);
  }

  // What is shown may not be so any more, or is again.
  stale(is) {
    $('here').classList.toggle('stale', is);
    $('here-toggle').classList.toggle('stale', is);
  }

  // The number of people in the room shown, as far as is known.
  get count() { return this.#known ? this.#count : 0; }

  #heal(ms) {
    if (this.#due <= Date.now() + ms) return;
    clearTimeout(this.#healing);
    this.#due = Date.now() + ms;
    this.#healing = setTimeout(() => this.refresh(), ms);
  }

  async #more() {
    const turn = this.#turn;
    const answer = await this.#ask(this.#room, this.#next);
    if (turn !== this.#turn || answer.type === 'error') return;
    this.#paged = true;
    this.#count = answer.count;
    this.#next = answer.next;
    for (const name of answer.users ?? []) this.#add(name);
    this.#show();
  }

  #add(name) {
    if (this.#rows.has(name)) return;
    const row = make('li');
    const button = make('button', 'person');
    button.append(avatar(name), make('span', 'name', name));
    if (name === this.#me) button.append(make('span', 'soft', 'you'));
    button.onclick = () => this.#open(name);
    row.append(button);
    row.dataset.name = name;
    let last = $('here-list').lastElementChild;
    while (last && last.dataset.name > name) last = last.previousElementSibling;
    $('here-list').insertBefore(row, last ? last.nextElementSibling : $('here-list').firstElementChild);
    this.#rows.set(name, row);
  }

  #remove(name) {
    this.#rows.get(name)?.remove();
    this.#rows.delete(name);
  }

  #forget() {
    this.#known = false;
    this.#paged = false;
    this.#next = undefined;
    for (const name of [...this.#rows.keys()]) this.#remove(name);
    this.#show();
  }

  #show() {
    const open = this.#known && this.#wanted;
    $('here').hidden = !open;
    $('here-toggle').hidden = !this.#known;
    $('here-toggle').setAttribute('aria-expanded', String(open));
    setText($('here-toggle'), `${this.#count} here`);
    setText($('here-title'), `Here now: ${this.#count}`);
    $('here-more').hidden = this.#next === undefined;
  }
}

// The panel with the raw frames: bounded, and it can be held still.

const LINES_MAX = 500;
const CHARS_MAX = 4_000; // of one frame; a frame may have 64 KB
const CLOCK = { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, hourCycle: 'h23' };
const WORDS = { in: ['↓', 'received'], out: ['↑', 'sent'], note: ['·', 'note'] };

export class FramesPanel {
  #list; #pause; #beats;
  #held = null; // lines that came while paused, or null

  constructor(panel) {
    this.#list = panel.querySelector('#frames-list');
    this.#pause = panel.querySelector('#frames-pause');
    this.#beats = panel.querySelector('#frames-beats');
    this.#pause.onclick = () => this.#toggle();
    panel.querySelector('#frames-clear').onclick = () => {
      this.#list.replaceChildren();
      if (this.#held) this.#held = [];
      this.#label();
    };
  }

  // direction: 'in', 'out', or 'note' for what isn't a frame and has no type.
  add(direction, text, type) {
    if (!this.#beats.checked && type === 'heartbeat') return;
    const line = this.#line(direction, text);
    if (this.#held) {
      this.#held.push(line);
      if (this.#held.length > LINES_MAX) this.#held.shift();
      this.#label();
    } else {
      this.#show([line]);
    }
  }

  #line(direction, text) {
    const line = document.createElement('li');
    line.className = direction;
    const time = document.createElement('time');
    time.textContent = new Date().toLocaleTimeString([], CLOCK);
    const [sign, word] = WORDS[direction];
    const arrow = document.createElement('b');
    arrow.textContent = sign;
    arrow.setAttribute('aria-hidden', 'true');
    const spoken = document.createElement('span');
    spoken.className = 'unseen';
    spoken.textContent = word;
    const body = document.createElement('code');
    body.textContent = text.length > CHARS_MAX
      ? `${text.slice(0, CHARS_MAX)} … and ${text.length - CHARS_MAX} characters more`
      : text;
    line.append(time, arrow, spoken, body);
    return line;
  }

  #show(lines) {
    this.#list.append(...lines);
    while (this.#list.childElementCount > LINES_MAX) this.#list.firstElementChild.remove();
  }

  #toggle() {
    if (this.#held) {
      const held = this.#held;
      this.#held = null;
      this.#show(held);
    } else {
      this.#held = [];
    }
    this.#label();
  }

  #label() {
    const held = this.#held;
    this.#pause.setAttribute('aria-pressed', String(held !== null));
    this.#pause.textContent = held === null ? 'Pause' : `Resume${held.length ? ` (${held.length})` : ''}`;
  }
}

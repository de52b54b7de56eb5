// What docs/protocol.md asks of every client, and needs no session to know.

const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 30_000;
const CLOSING_WAIT_MAX_MS = 300_000; // however long a gateway asks us to stay away
const ID_BYTES_MAX = 128;

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
export function comebackDelay(attempt, closing) {
  if (closing && (closing.afterMs !== undefined || closing.windowMs !== undefined)) {
    const wait = (closing.afterMs ?? 0) + Math.random() * (closing.windowMs ?? BACKOFF_BASE_MS);
    return Math.min(wait, CLOSING_WAIT_MAX_MS);
  }
  return Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
}

// What is wrong with the name of a user or room, or ''. The gateway has the last word.
export function nameFault(name) {
  if (!name) return 'Write a name.';
  if (new TextEncoder().encode(name).length > ID_BYTES_MAX) return `A name has at most ${ID_BYTES_MAX} bytes.`;
  if (/[\u0000-\u001f\u007f-\u009f]|\p{Surrogate}/u.test(name)) return 'A name has no control characters.';
  return '';
}

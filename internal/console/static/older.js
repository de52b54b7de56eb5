// What was said before this page came, read from the log as the reader scrolls back.

const PAGE = 50;           // messages of history asked for at once
const PAGES_MAX = 20;      // read in a row in search of this conversation's
const PAGE_PAUSE_MS = 600; // pages count against the rate of messages

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Reads back from where the page came in, until there is something of this
// conversation: the inbox holds those with everybody.
export async function readOlder(session, user, talk) {
  if (talk.reading) return;
  talk.reading = true;
  talk.readingOn();
  try {
    for (let page = 0; page < PAGES_MAX; page++) {
      const before = talk.before ?? session.beginning(talk.room);
      if (!before) return talk.readableByHand('Earlier messages'); // asked again when there is a connection
      // `before` is the oldest message we have; the beginning is the last one we don't.
      const answer = await session.history(talk.room, talk.before ?? { ...before, offset: before.offset + 1 }, PAGE);
      if (answer.code === 'limited' && answer.retryAfterMs) {
        await pause(answer.retryAfterMs);
        continue;
      }
      if (answer.type === 'error') return talk.readableByHand(answer.code === 'gone' ? 'Earlier messages' : `Earlier messages (${answer.code}: try again)`);
      const { messages = [], first, more, epoch } = answer;
      if (messages.length) talk.before = { epoch: messages[0].epoch ?? epoch, offset: messages[0].offset };
      const found = talk.prepend(messages.filter((m) => talk.room !== undefined || talk.name === (m.from === user ? m.to : m.from)));
      if (!more || !messages.length) return talk.complete(first > 1 ? 'What is older is not kept any more.' : 'This is the beginning.');
      if (found) break;
      await pause(PAGE_PAUSE_MS);
    }
    talk.readable('Earlier messages');
  } finally {
    talk.reading = false;
  }
}

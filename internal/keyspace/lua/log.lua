-- The head of an address's log. Needs clock.
-- Field 'h' of the log hash: epoch top line gen count since extended cursor
--   epoch     random, rolled when Redis' history line changed
--   top       the last offset given; offsets never go back, not even over a roll
--   line      the history line the epoch belongs to
--   gen       0..2, the dedupe generation being filled; gen+2 mod 3 is the one before,
--             gen+1 mod 3 is empty or being swept
--   count     records in the generation; since: when it began, s
--   extended  when the keys' expiry was last pushed out, s
--   cursor    HSCAN cursor of the sweep, '-' when there is nothing to sweep
-- It stays below 64 bytes while top is short, so the hash of an address that is
-- hardly used is a listpack.
-- Field 'p': the last 8 (epoch, top) pairs that were rolled over, newest first:
--   "epoch:top epoch:top ..."
-- parseLog(h, line, fresh) -> table; .dirty when it must be written, .rolled = the
-- pair to push when the line changed. Numbers that are only passed on stay strings.
local function parseLog(h, line, fresh)
  if not h then
    return { epoch = fresh, top = 0, line = line, gen = '0', count = 0, since = int(now / 1000), ext = '0', cursor = '-',
      dirty = true, new = true }
  end
  local e, top, l, gen, count, since, ext, cursor =
    string.match(h, '^(%S+) (%d+) (%S+) (%d) (%d+) (%d+) (%d+) (%S+)$')
  local L = { epoch = e, top = tonumber(top), line = l, gen = gen, count = tonumber(count),
    since = since, ext = ext, cursor = cursor }
  if l ~= line then
    L.rolled = e .. ':' .. top
    L.epoch, L.line, L.dirty = fresh, line, true
  end
  return L
end
local function formatLog(L)
  return string.format('%s %d %s %s %d %s %s %s', L.epoch, L.top, L.line, L.gen, L.count, L.since, L.ext, L.cursor)
end
-- pushPair(logKey, pair) -> the new value of 'p'
local function pushPair(logKey, pair)
  local kept, n = pair, 1
  for p in string.gmatch(redis.call('HGET', logKey, 'p') or '', '%S+') do
    if n == 8 then break end
    kept, n = kept .. ' ' .. p, n + 1
  end
  return kept
end
-- openLog(logKey, streamKey, line, fresh, ttl) -> the head, written when the log is
-- new or its epoch has to roll, so that it has a position to tell
local function openLog(logKey, streamKey, line, fresh, ttl)
  local L = parseLog(redis.call('HGET', logKey, 'h'), line, fresh)
  if L.dirty then
    if L.new then redis.call('UNLINK', streamKey) end
    if L.rolled then redis.call('HSET', logKey, 'p', pushPair(logKey, L.rolled)) end
    -- When the log was extended is send's to say: it extends the stream as well.
    redis.call('HSET', logKey, 'h', formatLog(L))
    redis.call('PEXPIRE', logKey, ttl)
  end
  return L
end
-- firstOffset(L, streamKey) -> the oldest offset kept; top + 1 when nothing is
local function firstOffset(L, streamKey)
  if L.top > 0 then
    local oldest = redis.call('XRANGE', streamKey, '-', '+', 'COUNT', 1)[1]
    if oldest then return tonumber(string.match(oldest[1], '^%d+')) end
  end
  return L.top + 1
end

-- revoked: reads the revocations that changed since a reader looked last.
--
-- KEYS  1 rev  2 revs
-- ARGV  1 epoch  2 number, both as the last answer had them  3 history line, too
-- Returns { history line, epoch ('-': there are none), number, now ms, 1 when they
--   begin with the first, 1 when there are more, name, before, end, name, ... }: 1,000
--   changes at most, in the order of their numbers. number is that of the last one
--   here, so the reader goes on from it. They begin with the first where epoch or line
--   is another than the reader's, or his number is ahead: Redis lost something.
-- Atomic. Runs twice safely: it writes nothing.

--#include clock
--#include line

local line = historyLine()
local epoch, top = string.match(redis.call('HGET', KEYS[1], ' ') or '- 0', '^(%S+) (%d+)$')
local from = tonumber(ARGV[2])
if epoch ~= ARGV[1] or line ~= ARGV[3] or from > tonumber(top) then from = 0 end
local names = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. int(from), '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
local more = #names == 2000
local out = { line, epoch, more and int(tonumber(names[2000])) or top, int(now), from == 0 and 1 or 0, more and 1 or 0 }
for i = 1, #names, 2 do
  local before, till = string.match(redis.call('HGET', KEYS[1], names[i]) or '', '^(%d+) (%d+)')
  if before then
    out[#out + 1] = names[i]
    out[#out + 1] = before
    out[#out + 1] = till
  end
end
return out

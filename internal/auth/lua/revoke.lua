-- revoke: enters revocations, or makes those that are there reach further.
--
-- KEYS  1 rev  2 revs
-- ARGV  1 TTL ms  2 most entries there may be  3 epoch, in case there is none yet,
--       then for each: its name  before (s; '' is now)  end (ms; '' is now + TTL)
-- Returns { how many changed }, or { -1 } when there is no room for all of them and
--   nothing was done. For 'a:' (everybody) alone there is always room.
-- rev is a hash: name -> "before end number"; the field ' ' (which is no name)
-- holds "epoch number", the number of the last change. revs is a sorted set of the
-- names by the number of their last change, so that a reader asks for what is new.
-- Atomic. Runs twice safely: before and end only grow, and what does not change
-- takes no number.

--#include clock

local ttl, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local head = redis.call('HGET', KEYS[1], ' ')
local epoch, number = string.match(head or (ARGV[3] .. ' 0'), '^(%S+) (%d+)$')
number = tonumber(number)

-- Those that end first were mostly changed first.
local oldest = redis.call('ZRANGE', KEYS[2], 0, 63)
local gone = {}
for i = 1, #oldest do
  local v = redis.call('HGET', KEYS[1], oldest[i])
  if not v or tonumber(string.match(v, '^%d+ (%d+)')) <= now then gone[#gone + 1] = oldest[i] end
end

local seen, fresh = {}, 0
for i = 4, #ARGV, 3 do
  if not seen[ARGV[i]] and redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then fresh = fresh + 1 end
  seen[ARGV[i]] = true
end
for i = 1, #gone do
  if seen[gone[i]] then fresh = fresh + 1 end
end
if fresh > 0 and redis.call('ZCARD', KEYS[2]) - #gone + fresh > most and not (seen['a:'] and #ARGV == 6) then return { -1 } end

for i = 1, #gone do
  redis.call('ZREM', KEYS[2], gone[i])
  redis.call('HDEL', KEYS[1], gone[i])
end
local changed, last = 0, now + ttl
for i = 4, #ARGV, 3 do
  local name = ARGV[i]
  local before = ARGV[i + 1] ~= '' and tonumber(ARGV[i + 1]) or math.floor(now / 1000)
  local till = ARGV[i + 2] ~= '' and tonumber(ARGV[i + 2]) or now + ttl
  last = math.max(last, till)
  local b, t = string.match(redis.call('HGET', KEYS[1], name) or '', '^(%d+) (%d+)')
  b, t = tonumber(b) or -1, tonumber(t) or -1
  if before > b or till > t then
    number = number + 1
    redis.call('HSET', KEYS[1], name, int(math.max(before, b)) .. ' ' .. int(math.max(till, t)) .. ' ' .. int(number))
    redis.call('ZADD', KEYS[2], int(number), name)
    changed = changed + 1
  end
end
if changed > 0 or not head then
  redis.call('HSET', KEYS[1], ' ', epoch .. ' ' .. int(number))
  -- As long as the one that ends last, whose caller may have had another TTL.
  for i = 1, 2 do
    if redis.call('PEXPIRE', KEYS[i], int(last - now), 'NX') == 0 then redis.call('PEXPIRE', KEYS[i], int(last - now), 'GT') end
  end
end
return { changed }

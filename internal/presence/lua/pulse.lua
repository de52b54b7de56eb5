-- pulse: the heartbeat of a gateway in one group.
--
-- KEYS  1 lease  2 line  3 num  4 own  5 off  6 snap  7 tomb  8 mem
-- ARGV  1 gateway  2 its channel  3 lease ms  4 gap ms: older than this, the last
--       pulse says that Redis was away  5 quiet ms  6 reap after ms
--       7 snapshot ('' to leave it; '-' to say goodbye: the lease ends now)
--       8 '1': it has pulsed here before
-- Returns { now ms, history line, end of the quiet time ms (0: none), number of
--   the channel, size of own, leases {gateway, end, ...}, gateways to reap {...},
--   users whose grace is over {...}, 100 at most, how many members it has in rooms
--   of the group, how many subscribers heard the pulse (-1: it may not publish) };
--   in quiet time nobody is named
-- The same numbers go to the gateway's own channel, behind everything published
-- before: a FIFO channel whose number is not the expected one lost something.
-- Atomic. Runs twice safely: a second pulse is only a newer one.

--#include clock
--#include line

local gw, gap, quietMs, reapAfter = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local line = historyLine()
local v = redis.call('HMGET', KEYS[2], 'id', 'pulse', 'quiet')
local quiet = tonumber(v[3]) or 0
-- In an empty registry there is nobody who could be judged wrongly, unless it was
-- emptied: then those who are there are told again.
local empty = not v[2] and ARGV[8] ~= '1' and redis.call('ZCARD', KEYS[1]) == 0
if not empty and (v[1] ~= line or not v[2] or now - v[2] > gap) then quiet = now + quietMs end
redis.call('HSET', KEYS[2], 'id', line, 'pulse', int(now), 'gap', int(gap), 'quiet', int(quiet))
if now >= quiet then quiet = 0 end

if ARGV[7] == '-' then
  redis.call('ZADD', KEYS[1], int(now - reapAfter - 1), gw)
  redis.call('HDEL', KEYS[6], gw)
else
  redis.call('ZADD', KEYS[1], int(now + tonumber(ARGV[3])), gw)
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[6], gw, ARGV[7]) end
end

local number = redis.call('HGET', KEYS[3], gw) or '0'
local own = redis.call('HLEN', KEYS[4])
local heard = redis.pcall(PUBLISH, ARGV[2], '\1p' .. number .. ' ' .. own .. ' ' .. line)

local leases = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local dead = {}
if quiet == 0 then
  for i = 1, #leases, 2 do
    if leases[i] ~= gw and tonumber(leases[i + 1]) + reapAfter <= now then dead[#dead + 1] = leases[i] end
  end
end

-- Tombstones and the channel numbers of gateways long gone leave after a day.
local tombs = redis.call('HGETALL', KEYS[7])
for i = 1, #tombs, 2 do
  if now - tonumber(tombs[i + 1]) > 86400000 then
    redis.call('HDEL', KEYS[7], tombs[i])
    if not redis.call('ZSCORE', KEYS[1], tombs[i]) then redis.call('HDEL', KEYS[3], tombs[i]) end
  end
end

-- While Redis was away nobody could come back within his grace.
local due = quiet == 0 and redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', int(now), 'LIMIT', 0, 100) or {}
return { int(now), line, int(quiet), number, own, leases, dead, due, redis.call('HGET', KEYS[8], gw) or '0',
  type(heard) == 'number' and heard or -1 }

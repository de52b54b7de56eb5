-- hold: makes a gateway a holder of addresses that are no user's (rooms, and watches of users), or ends that.
--
-- KEYS  1 lease  2 line  3 own, then for each address: holders, and for a room its log and stream
-- ARGV  1 gateway  2 lease ms  3 fresh epoch  4 log TTL ms
--       5 '' or, for reaping, the ms after the end of the lease that must have passed
--       then for each address: the address, '+' to hold it or '-' to let it go
-- Returns one line for each address, joined by LF:
--   "+ epoch top first"  a room, held; first is the oldest offset kept
--   "+"                  a watch, held; it has no log
--   "-"                  let go
--   or only "alive" when reaping was asked and the gateway may not be judged.
-- Atomic: lease, holders, own index and the position, so nothing is stored between the two that is neither below the position nor
-- published to the gateway. Runs twice safely: both are states, not steps.

--#include clock
--#include line
--#include life
--#include log

local gw, reapAfter = ARGV[1], ARGV[5]
if reapAfter ~= '' then
  local till = redis.call('ZSCORE', KEYS[1], gw)
  if quietTime(KEYS[2]) or (till and tonumber(till) + tonumber(reapAfter) > now) then return 'alive' end
end

local line = historyLine()
local out, k, leased = {}, 4, false
for a = 6, #ARGV, 2 do
  local address = ARGV[a]
  local room = string.sub(address, 1, 2) == 'r:'
  if ARGV[a + 1] == '+' then
    if not leased then
      -- A sign of life: no holder is ever without a lease to judge it by.
      redis.call('ZADD', KEYS[1], 'GT', int(now + tonumber(ARGV[2])), gw)
      leased = true
    end
    redis.call('HSET', KEYS[k], gw, '1')
    redis.call('HSET', KEYS[3], address, '')
    if room then
      local L = openLog(KEYS[k + 1], KEYS[k + 2], line, ARGV[3], ARGV[4])
      out[#out + 1] = '+ ' .. L.epoch .. ' ' .. int(L.top) .. ' ' .. int(firstOffset(L, KEYS[k + 2]))
    else
      out[#out + 1] = '+'
    end
  else
    redis.call('HDEL', KEYS[k], gw)
    redis.call('HDEL', KEYS[3], address)
    out[#out + 1] = '-'
  end
  k = k + (room and 3 or 1)
end
return table.concat(out, '\n')

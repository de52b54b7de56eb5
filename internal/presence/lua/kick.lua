-- kick: marks connections of a user, and tells the gateways that hold them.
--
-- KEYS  1 conns  2 line
-- ARGV  1 channel prefix  2 connection id ('' for all of the user)
--       3 close code  4 reason (packed: no spaces)  5 by
--       6 highest fence of those that are meant ('' for any)
-- Returns { how many were marked by this call, 1 in quiet time: there may be some
--   that Redis forgot, then the ids of all that are marked now and were asked for,
--   whoever marked them }
-- Atomic. Runs twice safely: a marked entry is not marked again.

--#include clock
--#include life
--#include entry

local highest = tonumber(ARGV[6])
local out = { 0, quietTime(KEYS[2]) and 1 or 0 }
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if ARGV[2] == '' or ARGV[2] == all[i] then
    local e = parseEntry(all[i + 1])
    if not highest or tonumber(e.fence) <= highest then
      if e.mark == '' then
        markEntry(KEYS[1], all[i], e, ARGV[3], ARGV[4], ARGV[5], ARGV[1])
        out[1] = out[1] + 1
      end
      out[#out + 1] = all[i]
    end
  end
end
return out

-- kick: marks connections of a user, and tells the gateways that hold them.
--
-- KEYS  1 conns
-- ARGV  1 channel prefix  2 connection id ('' for all of the user)
--       3 close code  4 reason (no spaces)  5 by
-- Returns how many connections were marked.
-- Atomic. Runs twice safely: a marked entry is not marked again.

--#include clock
--#include entry

local n = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if ARGV[2] == '' or ARGV[2] == all[i] then
    local e = parseEntry(all[i + 1])
    if e.mark == '' then
      markEntry(KEYS[1], all[i], e, ARGV[3], ARGV[4], ARGV[5], ARGV[1])
      n = n + 1
    end
  end
end
return n

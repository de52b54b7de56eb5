-- done: a command is done. It leaves the stream, so that the stream's length is what
-- is still to be done, and what is said of it is put where it is wanted.
--
-- KEYS  1 in  2... streams that get an entry about it
-- ARGV  1 id  then for each stream: how many entries it keeps, ms after which it
--       expires, how many texts follow, and those: fields and values
-- Returns 1, or 0 when it was done before: then nothing is said twice
-- Atomic: it is answered exactly when it leaves.
-- Runs twice safely: the second time it has left.

local GROUP = 'gateways'
local p = redis.pcall('XPENDING', KEYS[1], GROUP, ARGV[1], ARGV[1], 1)
if p.err or #p == 0 then return 0 end
local at = 2
for k = 2, #KEYS do
  local kept, ttl, n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  redis.call('XADD', KEYS[k], 'MAXLEN', '~', kept, '*', unpack(ARGV, at + 3, at + 2 + n))
  redis.call('PEXPIRE', KEYS[k], ttl)
  at = at + 3 + n
end
redis.call('XACK', KEYS[1], GROUP, ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1

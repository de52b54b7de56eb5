-- refresh: pushes out the expiry of connections that gave a sign of life.
--
-- KEYS  1 tomb, then for each connection: conns, log
-- ARGV  1 gateway  2 presence TTL ms, then for each connection: id, fence
-- Returns one line for each connection, joined by LF:
--   "o epoch top"           refreshed; where the user's log stands; "o" when there is none
--   "m code reason by"      marked: close it with this code
--   "r"                     the gateway was reaped meanwhile, and this entry with it
--   "a"                     absent: Redis lost it, register again with the same fence
-- Atomic per connection. Runs twice safely: it only moves an expiry.

--#include clock
--#include entry

local gw, ttl = ARGV[1], tonumber(ARGV[2])
local reaped

local function refresh(connsKey, logKey, id, fence)
  local v = redis.call('HGET', connsKey, id)
  if not v then
    if reaped == nil then reaped = redis.call('HEXISTS', KEYS[1], gw) == 1 end
    return reaped and 'r' or 'a'
  end
  local e = parseEntry(v)
  if e.gw ~= gw or e.fence ~= fence then return 'r' end
  if e.mark ~= '' then return 'm ' .. e.mark end
  e.expiry = now + ttl
  redis.call('HSET', connsKey, id, formatEntry(e))
  local log = string.match(redis.call('HGET', logKey, 'h') or '', '^%S+ %d+')
  return log and 'o ' .. log or 'o'
end

local out = {}
local k = 2
for a = 3, #ARGV, 2 do
  out[#out + 1] = refresh(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1])
  k = k + 2
end
return table.concat(out, '\n')

-- refresh: pushes out the expiry of connections that gave a sign of life, and enters
-- the meta of those whose meta was changed.
--
-- KEYS  1 tomb  2 own, then for each connection: conns, log
-- ARGV  1 gateway  2 presence TTL ms (0: no sign of life, the expiry stays where it is)
--       then for each connection: id, fence; behind the fence, where its meta was changed
--       since it registered, SEP, which one it is, SEP and the meta
-- Returns one line for each connection, joined by LF:
--   "o epoch top"           refreshed; where the user's log stands; "o" when there is none
--   "m code reason by"      marked: close it with this code
--   "r"                     the gateway was reaped meanwhile, and this entry with it
--   "a"                     absent: Redis lost it, register again with the same fence
-- Atomic per connection. Runs twice safely: it only moves an expiry, and a meta that is
-- there, or was followed by another, is not entered again.

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
  local number, meta
  if e.fence ~= fence then fence, number, meta = string.match(fence, '^(%d+)\31(%d+)\31(.*)$') end
  if e.gw ~= gw or e.fence ~= fence then return 'r' end
  if e.mark ~= '' then return 'm ' .. e.mark end
  if number then rebind(KEYS[2], id, e, number, meta) end
  if ttl > 0 then e.expiry = now + ttl end
  redis.call('HSET', connsKey, id, formatEntry(e))
  local log = string.match(redis.call('HGET', logKey, 'h') or '', '^%S+ %d+')
  return log and 'o ' .. log or 'o'
end

local out = {}
local k = 3
for a = 3, #ARGV, 2 do
  out[#out + 1] = refresh(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1])
  k = k + 2
end
return table.concat(out, '\n')

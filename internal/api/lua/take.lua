-- take: what one gateway is to do next of what backends put into the stream of
-- commands.
--
-- KEYS  1 in
-- ARGV  1 gateway  2 how many at most  3 ms after which a command that another gateway
--       has in hand is taken over, 0: not now  4 ms after which a gateway that has
--       nothing in hand and wasn't seen is forgotten  5 bytes after which it is
--       enough  6 bytes of a text that are given
-- Returns { length, pending, age of the oldest in ms, entries {id, deliveries, {field, value, ...}} }
--   length      commands that are not done, those in hand among them
--   pending     those in hand
--   deliveries  how often the command was handed out, this time included
--   value       cut where it is too long for any command, so that one of them never
--               holds up the others; a name that is, or a field too many, is left out
-- Atomic: a command is in one gateway's hand until it is done or taken over, and one
-- that has something in hand is never forgotten.
-- Runs twice safely: what an answer held that didn't arrive is in hand, and is taken
-- over in its time.

--#include clock

local gw, count, stale, gone = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local GROUP = 'gateways'
local most, longest = tonumber(ARGV[5]), tonumber(ARGV[6])
local FIELDS = 16 -- more than there are
local out, bytes = {}, 0

-- give(id, deliveries, fields): hands a command out.
local function give(id, deliveries, fields)
  local given = {}
  for i = 1, math.min(#fields, 2 * FIELDS), 2 do
    local name, value = string.sub(fields[i], 1, 64), string.sub(fields[i + 1], 1, longest)
    given[#given + 1], given[#given + 2] = name, value
    bytes = bytes + #fields[i] + #fields[i + 1] -- what it cost to read
  end
  out[#out + 1] = { id, deliveries, given }
end

-- ask(command): a command on the group, which is made where it is missing: it begins
-- with what was left before any gateway ran.
local function ask(command)
  local r = command()
  if type(r) == 'table' and r.err and string.find(r.err, 'NOGROUP', 1, true) then
    redis.pcall('XGROUP', 'CREATE', KEYS[1], GROUP, '0', 'MKSTREAM')
    r = command()
  end
  return r
end

local pending = ask(function() return redis.pcall('XPENDING', KEYS[1], GROUP) end)
if pending.err then return redis.error_reply(pending.err) end

if stale > 0 and pending[1] > 0 then
  local cursor = '0-0'
  repeat
    local r = redis.call('XAUTOCLAIM', KEYS[1], GROUP, gw, stale, cursor, 'COUNT', 1)
    cursor = r[1]
    for i = 1, #r[2] do
      local e = r[2][i]
      if e then
        local p = redis.call('XPENDING', KEYS[1], GROUP, e[1], e[1], 1)
        give(e[1], p[1] and p[1][4] or 1, e[2])
      end
    end
  until cursor == '0-0' or #out >= count or bytes >= most
end
while #out < count and bytes < most do
  local r = redis.call('XREADGROUP', 'GROUP', GROUP, gw, 'COUNT', 1, 'STREAMS', KEYS[1], '>')
  local e = r and r[1] and r[1][2][1]
  if not e then break end
  give(e[1], 1, e[2])
end
if stale > 0 then
  for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], GROUP)) do
    local of = {}
    for i = 1, #c, 2 do of[c[i]] = c[i + 1] end
    if of.name ~= gw and of.pending == 0 and of.idle > gone then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], GROUP, of.name)
    end
  end
end

-- The oldest is in somebody's hand: what was put in first is handed out first.
local age, inHand = 0, redis.call('XPENDING', KEYS[1], GROUP)
if inHand[1] > 0 then age = math.max(0, now - tonumber(string.match(inHand[2], '^%d+'))) end
return { redis.call('XLEN', KEYS[1]), inHand[1], age, out }

-- An entry of a user's conns, fields joined by the unit separator, which no id and
-- no JSON text can hold:
--   fence expiry gateway mark since device meta
-- mark is '' or "code reason by" (reason without spaces), with the time in ms behind
-- a record separator: the connection was told to go, and its gateway removes the
-- entry when the socket is closed. device may have a class behind the same separator.
local SEP = '\31'
local function parseEntry(v)
  local fence, expiry, gw, mark, since, device, meta =
    string.match(v, '^(%d+)\31(%d+)\31([^\31]*)\31([^\31]*)\31(%d+)\31([^\31]*)\31(.*)$')
  local name, class = string.match(device, '^(.*)\30(.*)$')
  return { fence = fence, expiry = tonumber(expiry), gw = gw, mark = mark, since = since,
    device = name or device, class = class or '', meta = meta }
end
local function formatEntry(e)
  return e.fence .. SEP .. int(e.expiry) .. SEP .. e.gw .. SEP .. e.mark .. SEP .. e.since .. SEP ..
    e.device .. (e.class ~= '' and '\30' .. e.class or '') .. SEP .. e.meta
end
-- rebind(ownKey, id, e, number, meta): binds another meta to the entry, in own and in e, which is
-- left to the caller to write; false when there is a later one. Numbers count the metas of a
-- connection since it registered, and own has the last behind all else: so a call that
-- comes late, after it was given up, changes nothing.
local function rebind(ownKey, id, e, number, meta)
  local head, last = string.match(redis.call('HGET', ownKey, id) or '', '^(%d+\31[^\31]*\31%d+\31[^\31]*\31)[^\31]*\31?(%d*)$')
  if not head or (tonumber(last) or 0) >= tonumber(number) then return false end
  redis.call('HSET', ownKey, id, head .. meta .. SEP .. number)
  e.meta = meta
  return true
end
-- mark(connsKey, id, e, code, reason, by, prefix): marks the entry and tells its
-- gateway. The publish may be lost: the next refresh finds the mark.
local function markEntry(connsKey, id, e, code, reason, by, prefix)
  e.mark = code .. ' ' .. reason .. ' ' .. by .. '\30' .. int(now)
  redis.call('HSET', connsKey, id, formatEntry(e))
  redis.pcall(PUBLISH, prefix .. e.gw, '\1k' .. id .. SEP .. e.fence .. SEP .. code .. SEP .. reason .. SEP .. by .. SEP .. int(now))
end

-- Online and offline, once for the whole cluster. Needs clock, line, event and entry.
-- The state key holds "epoch n state ms line": n grows by one with every change, so
-- it is odd while the user is online. The epoch is random and lasts as long as the
-- key (while the user is online, and some weeks longer) and Redis' history line: a
-- failover may have forgotten changes that were told, and their n comes again.
--   goOnline, goOffline(ctx, user, keys): the change, its event and the word to
--     the gateways where somebody watches; nothing when the state is so already.
--     goOnline(..., true) makes no event: Redis lost the state of a user who never
--     left. Those who watch are told, since its version is of another epoch.
-- Each word takes its gateway's next number, as stored messages do, so that a lost
-- one is missed.
-- ctx: { ev = key, max = events kept (0: none), off = key, num = key, prefix = channels,
--        fresh = epoch, line = history line, where it is known already }
local STATE_TTL = 37 * 86400 * 1000
local function change(ctx, user, stateKey, watchKey, to, again)
  local epoch, n, state, line = string.match(redis.call('GET', stateKey) or '', '^(%S+) (%d+) (%S+) %d+ ?(%S*)$')
  if state == to or (not state and to == 'offline') then return end
  ctx.line = ctx.line or historyLine()
  if line ~= ctx.line then epoch = ctx.fresh end
  n = int((tonumber(n) or 0) + 1)
  redis.call('SET', stateKey, epoch .. ' ' .. n .. ' ' .. to .. ' ' .. int(now) .. ' ' .. ctx.line)
  if to == 'offline' then redis.call('PEXPIRE', stateKey, STATE_TTL) end
  if not again then emit(ctx, 'type', to, 'user', user, 'version', epoch .. '.' .. n, 'ms', int(now)) end
  local watchers = redis.call('HKEYS', watchKey)
  for i = 1, #watchers do
    local number = redis.call('HINCRBY', ctx.num, watchers[i], 1)
    redis.pcall(PUBLISH, ctx.prefix .. watchers[i],
      '\1s' .. int(number) .. '\n' .. user .. SEP .. to .. SEP .. epoch .. SEP .. n .. SEP .. int(now))
  end
end
local function goOnline(ctx, user, stateKey, watchKey, again)
  redis.call('ZREM', ctx.off, user)
  change(ctx, user, stateKey, watchKey, 'online', again)
end
local function goOffline(ctx, user, stateKey, watchKey)
  redis.call('ZREM', ctx.off, user)
  change(ctx, user, stateKey, watchKey, 'offline')
end

-- emit(ctx, ...): appends an event to the stream, when the caller keeps one. Its
-- field n counts the events of the group, so that a hole in what is read back says
-- how many were trimmed before anyone read them. (No gateway id is 'ev'.) Needs clock.
-- ctx: { ev = key, max = events kept (0: none), num = key }
local function emit(ctx, ...)
  if ctx.max > 0 then
    local n = redis.call('HINCRBY', ctx.num, 'ev', 1)
    redis.call('XADD', ctx.ev, 'MAXLEN', '~', ctx.max, '*', 'n', int(n), ...)
  end
end

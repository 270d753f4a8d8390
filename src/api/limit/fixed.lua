-- A fixed window: a counter that starts with the first request and expires. Each caller has its own
-- start, so that not all windows end at the same time.
local fixed = {}

-- Returns how many requests passed within the window, the µs until it ends, and the time. A key
-- that would live for more than two windows was written before the clock was set back, or before
-- the window was made shorter.
function fixed.count(key, window, now)
  local left = redis.call('PTTL', key) * 1000
  if left < 0 or left > 2 * window then
    return 0, window, now
  end
  return tonumber(redis.call('GET', key)) or 0, left, now
end

function fixed.take(key, window, now, passed)
  if passed == 0 then
    redis.call('SET', key, 1, 'PX', math.ceil(window / 1000))
  else
    redis.call('INCR', key)
  end
end


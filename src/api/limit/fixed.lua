-- A fixed window: a counter that begins with the first request and ends by itself. It begins when its caller does, so
-- that not everybody's windows end in the same moment.
local fixed = {}

-- How many passed within the window, and µs until none did. What would live for more than two windows was written
-- before the clock was set back, or the window was made shorter.
function fixed.look(key, window, now)
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


-- A sliding window: a list of the times in µs at which requests passed, oldest first. It is as
-- exact as a sorted set, takes a fraction of the memory, and can hold two requests of the same µs.
-- It never holds more than the limit, because refused requests are not added.
local sliding = {}

-- Returns how many requests passed within the window, the µs until one of them leaves it, and the
-- time to write. Times in a list never fall, even if the clock was set back. If it was set back by
-- more than a window, the list is discarded.
function sliding.count(key, window, now)
  local size = redis.call('LLEN', key)
  if size == 0 then
    return 0, window, now
  end
  local newest = tonumber(redis.call('LINDEX', key, -1))
  if newest > now + window then
    redis.call('DEL', key)
    return 0, window, now
  end
  now = math.max(now, newest)
  -- Binary search: how many at the front are too old. It looks at the front first: usually none is.
  local low, high = 0, size
  local middle = 0
  while low < high do
    if tonumber(redis.call('LINDEX', key, middle)) > now - window then
      high = middle
    else
      low = middle + 1
    end
    middle = math.floor((low + high) / 2)
  end
  if low > 0 then
    redis.call('LTRIM', key, low, -1)
  end
  if low == size then
    return 0, window, now
  end
  return size - low, tonumber(redis.call('LINDEX', key, 0)) + window - now, now
end

-- One ms longer than the window: Redis expires keys in whole ms, and must not do so too early.
function sliding.take(key, window, now)
  redis.call('RPUSH', key, string.format('%.0f', now))
  redis.call('PEXPIRE', key, math.ceil(window / 1000) + 1)
end


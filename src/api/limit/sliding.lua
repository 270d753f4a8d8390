-- A window that slides: the requests that passed, as a list of their times in µs, oldest first. As exact as a sorted
-- set and a fraction of its memory, and two requests in one µs need no names to be two. It never holds more than the
-- limit, because what is refused is not added.
local sliding = {}

-- How many passed within the window, µs until one fewer did, and the time to write now. Times in the list only rise,
-- also where the clock was set back; when it was set back by more than a window they mean nothing any more.
function sliding.look(key, window, now)
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
  -- By halves: how many at the front are too old. Most often none, or one.
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

-- A millisecond more than the window: Redis counts in whole ones, and may not forget too early.
function sliding.take(key, window, now)
  redis.call('RPUSH', key, string.format('%.0f', now))
  redis.call('PEXPIRE', key, math.ceil(window / 1000) + 1)
end


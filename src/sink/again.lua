#!lua flags=allow-oom
-- Adds second deletes to a sorted set. Its scores are the times at which they are due: milliseconds
-- since 1970 by the clock of Redis. Returns how many were added or became due later.
-- KEYS[1]: the set; one of another type is deleted first. ARGV[1]: how many members it may have;
-- ARGV[2]: how many deletes follow, each a delay in milliseconds and a member; then, in the same
-- form, those that take their place if the set would have too many.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then
  redis.call('UNLINK', KEYS[1])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first, last = 3, 2 + 2 * ARGV[2]
if redis.call('ZCARD', KEYS[1]) + ARGV[2] > tonumber(ARGV[1]) then
  first, last = last + 1, #ARGV
end
local changed = 0
for i = first, last, 2 do
  changed = changed + redis.call('ZADD', KEYS[1], 'GT', 'CH', now + ARGV[i], ARGV[i + 1])
end
return changed

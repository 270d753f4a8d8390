#!lua flags=allow-oom
-- Appends items to a list. A key of another type is deleted first. Returns how many items were
-- appended.
-- KEYS[1]: the list. ARGV: how many items to keep, for how many milliseconds the list lives after
-- the last write, then the items.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'list' and kind ~= 'none' then
  redis.call('UNLINK', KEYS[1])
end
for i = 3, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
redis.call('LTRIM', KEYS[1], -ARGV[1], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return #ARGV - 2

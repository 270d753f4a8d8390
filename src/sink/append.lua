#!lua flags=allow-oom
-- KEYS[1]: a list. ARGV: how many items to keep, milliseconds until a list that nobody writes goes, then items.
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

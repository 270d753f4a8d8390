#!lua
-- KEYS: the set of a tag. ARGV: the key that joins it, and for how many milliseconds the set must stay. A set that
-- somebody made to stay for ever does.
local stays = redis.call('PTTL', KEYS[1])
redis.call('SADD', KEYS[1], ARGV[1])
if stays ~= -1 and stays < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1

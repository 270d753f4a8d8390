#!lua
-- Adds a key to the set of a tag.
-- KEYS[1]: the set. ARGV: the key, and for how many milliseconds the set must live. A set without
-- an expiry time keeps none.
local stays = redis.call('PTTL', KEYS[1])
redis.call('SADD', KEYS[1], ARGV[1])
if stays ~= -1 and stays < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1

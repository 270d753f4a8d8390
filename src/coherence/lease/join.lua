#!lua
-- Joins a tag: reads its generation, or makes it, and adds a key to its set. Returns the generation
-- and a few members of the set.
-- KEYS: the generation, the set. ARGV: the key; for how many milliseconds both must live; the
-- generation to make if there is none; how many members to return. What has no expiry time keeps
-- none. A key of another type under the set's name does no harm: the set is only an index.
local function live(key, stays)
  if stays ~= -1 and stays < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', key, ARGV[2])
  end
end
local generation = redis.call('GET', KEYS[1])
if generation then
  live(KEYS[1], redis.call('PTTL', KEYS[1]))
else
  generation = ARGV[3]
  redis.call('SET', KEYS[1], generation, 'PX', ARGV[2])
end
local stays = redis.call('PTTL', KEYS[2])
if type(redis.pcall('SADD', KEYS[2], ARGV[1])) == 'table' then
  return {generation, {}}
end
live(KEYS[2], stays)
return {generation, redis.call('SRANDMEMBER', KEYS[2], ARGV[4])}

-- Returns the version under a version key. If there is none, it begins at `started`.
-- KEYS: the version key, `started`. ARGV[1]: for how many milliseconds a new version lives unless
-- it is bumped. When it has expired, the next one begins at least as high.
local held = redis.call('GET', KEYS[1])
if held then
  return held
end
local started = redis.call('GET', KEYS[2])
if not started then
  return false
end
local version = to_decimal(started)
redis.call('SET', KEYS[1], version, 'PX', ARGV[1])
return version

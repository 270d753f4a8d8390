-- KEYS: a version key, `started`. ARGV: milliseconds. Returns the version; a missing one begins at `started` and lives so
-- long, unless it is bumped: when it has gone the next one begins at least as high.
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

-- KEYS: a version key, `started`. Returns the version; a missing one begins at `started` and lives for 30 days.
local held = redis.call('GET', KEYS[1])
if held then
  return held
end
local started = redis.call('GET', KEYS[2])
if not started then
  return false
end
local version = to_decimal(started)
redis.call('SET', KEYS[1], version, 'PX', 2592000000)
return version

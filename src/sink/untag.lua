#!lua flags=allow-oom
-- KEYS: a set of keys, then some of its members. Removes those keys, values and leases alike, and takes them out of
-- the set, so that nobody finds a member whose key is there and was not removed. Returns how many keys there were.
local removed = 0
for i = 2, #KEYS do
  removed = removed + redis.call('UNLINK', KEYS[i])
  redis.call('SREM', KEYS[1], KEYS[i])
end
return removed

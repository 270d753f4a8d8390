#!lua flags=allow-oom
-- Remembers states of the database's catalog, counts changes, and stores which tables are blind.
-- KEYS: the hash of states, the hash of counts, the hash of faults. ARGV: how many states follow,
-- then names and states; how many counts follow, then kinds and counts; then tables and faults.
local at = 1
local function pairs_of(count)
  local found = {}
  for i = 1, count do
    found[i] = {ARGV[at], ARGV[at + 1]}
    at = at + 2
  end
  return found
end
local function next_count()
  local count = tonumber(ARGV[at])
  at = at + 1
  return count
end
for _, pair in ipairs(pairs_of(next_count())) do
  redis.call('HSET', KEYS[1], pair[1], pair[2])
end
for _, pair in ipairs(pairs_of(next_count())) do
  redis.call('HINCRBY', KEYS[2], pair[1], pair[2])
end
redis.call('DEL', KEYS[3])
for i = at, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
return 1

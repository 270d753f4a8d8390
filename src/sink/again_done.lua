#!lua flags=allow-oom
-- Removes second deletes that are in force. One that was added again since is due later, and stays.
-- Returns how many were removed.
-- KEYS[1]: the sorted set. ARGV: each member, and the score that it had.
local removed = 0
for i = 1, #ARGV, 2 do
  if redis.pcall('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return removed

#!lua flags=allow-oom
-- Reads the second deletes that are due, which stay where they are. Returns in how many
-- milliseconds the next one is due (-1: none waits), then each member that is due, and its score.
-- KEYS[1]: the sorted set. ARGV[1]: how many to return at most.
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then
  return {'-1'}
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1], 'WITHSCORES')
local later = redis.call('ZRANGE', KEYS[1], '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
local wait = later[2] and string.format('%.0f', later[2] - now) or '-1'
if #due == 2 * ARGV[1] then
  wait = '0'
end
table.insert(due, 1, wait)
return due

#!lua flags=allow-oom
-- Adds a dead letter to its stream, and counts it by rule. A key of another type is deleted first.
-- KEYS: the stream, the hash of counts. ARGV: about how many entries to keep, for how many
-- milliseconds both live after the last write, the rule, how many to count, then the fields and
-- values of an entry, if there is one.
for i, wanted in ipairs({'stream', 'hash'}) do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= wanted and kind ~= 'none' then
    redis.call('UNLINK', KEYS[i])
  end
end
if #ARGV > 4 then
  -- A server without streams still counts.
  redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'rule', ARGV[3], unpack(ARGV, 5))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
redis.call('HINCRBY', KEYS[2], ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1

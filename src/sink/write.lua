-- Writes a value unless a newer one may be there. Returns whether it was written.
-- KEYS: a key, `started`. ARGV: the value in its envelope, the position it shows as 16 hexadecimal
-- digits, milliseconds until it expires, `started` of this batch.
-- If a later batch began already, this one was delayed and has been sent again since: the value may
-- be old, so the key is deleted. Otherwise a value that shows a later position stays. A lease does
-- not stay, so what its holder read is refused.
if redis.call('GET', KEYS[2]) ~= ARGV[4] then
  redis.call('UNLINK', KEYS[1])
  return 0
end
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' then
  local shown = string.match(held, '^V:%x+ (%x+) ')
  if shown and #shown == 16 and shown > ARGV[2] then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1

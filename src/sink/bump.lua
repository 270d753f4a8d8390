-- Raises version keys. Returns how many.
-- KEYS: `started`, then version keys. ARGV[1]: `started` of this batch; ARGV[i]: the decimal
-- position to which KEYS[i] rises; the last: for how many milliseconds a version key lives unless
-- it is bumped again.
-- Decimals without leading zeros compare by length, then as strings; Lua's numbers lose exactness
-- above 2^53.
-- If a later batch began already, this one was delayed and has been sent again since. A version key
-- that was lost meanwhile may have been higher, so it begins where a reader would begin it.
local started = redis.call('GET', KEYS[1])
local late = started and #started == 16 and started > ARGV[1]
for i = 2, #KEYS do
  local held = redis.pcall('GET', KEYS[i])
  local wanted = ARGV[i]
  local rises = true
  if type(held) == 'string' and string.match(held, '^[1-9]%d*$') then
    rises = #held < #wanted or (#held == #wanted and held < wanted)
  elseif late then
    wanted = to_decimal(started)
  end
  if rises then
    redis.call('SET', KEYS[i], wanted, 'PX', ARGV[#ARGV])
  end
end
return #KEYS - 1

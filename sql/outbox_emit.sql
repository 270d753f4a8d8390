-- unstale.emit for outbox mode: an application emits an event of its own, in its transaction:
--   select unstale.emit('product.updated', '{"id": 7}');
-- EXECUTE on the function is the only privilege that a caller needs. Run sql/outbox.sql first.
do $$
begin
  -- Replacing a function locks it and writes to the catalog, so an up-to-date one is left alone.
  if not exists (select from pg_proc where oid = to_regprocedure('unstale.emit(text, jsonb)')
                    and prosecdef and prosrc like '%unstale.outbox%') then
    create or replace function unstale.emit(name text, payload jsonb default '{}') returns void
      language plpgsql volatile parallel unsafe security definer
      set search_path = pg_catalog, pg_temp
    as $emit$
    begin
      if name is null or name = '' then
        raise exception 'unstale.emit: an event needs a name'
          using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
      end if;
      if jsonb_typeof(coalesce(payload, '{}')) <> 'object' then
        raise exception 'unstale.emit: the payload of % is not a JSON object', name
          using errcode = 'invalid_parameter_value', hint = 'call it as select unstale.emit(''product.updated'', ''{"id": 7}'')';
      end if;
      insert into unstale.outbox (op, new) values ('e', array[name, coalesce(payload, '{}')::text]);
      if pg_sequence_last_value('unstale.bell'::regclass) = 2 then
        perform unstale.ring();
      end if;
    end
    $emit$;
    comment on function unstale.emit(text, jsonb) is 'made by unstale';
  end if;
  grant usage on schema unstale to public;
  grant execute on function unstale.emit(text, jsonb) to public;
end
$$;

-- Rows for the example tables. Parameter: the setting unstale.users, the number of users.
-- There is one organization for every ten users, with five flags. Each user is a member of two
-- organizations and has one session.
do $$
declare
  users constant int := current_setting('unstale.users')::int;
  organizations constant int := greatest(1, users / 10);
begin
  insert into organizations (id, name, slug, plan)
    select 'o' || n, 'Organization ' || n, 'org-' || n, (array['free', 'team', 'enterprise'])[1 + n % 3]
      from generate_series(1, organizations) n;
  insert into users (id, email, name, avatar_url)
    select 'u' || n, 'user' || n || '@example.com', 'User ' || n, 'https://example.com/avatars/' || n || '.png'
      from generate_series(1, users) n;
  insert into memberships (id, user_id, organization_id, role)
    select 'm' || n || '-' || k, 'u' || n, 'o' || 1 + (n + k * 7) % organizations,
           (array['owner', 'admin', 'member', 'viewer'])[1 + (n + k) % 4]
      from generate_series(1, users) n, generate_series(0, 1) k
    on conflict do nothing;
  insert into feature_flags (id, organization_id, key, enabled)
    select 'f' || n || '-' || k, 'o' || n, 'feature-' || k, (n + k) % 2 = 0
      from generate_series(1, organizations) n, generate_series(1, 5) k;
  insert into sessions (id, user_id, token_hash)
    select 's' || n, 'u' || n, encode(sha256(('token-' || n)::bytea), 'hex')
      from generate_series(1, users) n;
end
$$;

-- The example tables: users, organizations, memberships, feature flags and sessions.
create table organizations (
  id         text primary key,
  name       text not null,
  slug       text not null unique,
  plan       text not null default 'free' check (plan in ('free', 'team', 'enterprise')),
  created_at timestamptz not null default now()
);

create table users (
  id         text primary key,
  email      text not null unique,
  name       text not null,
  avatar_url text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table memberships (
  id              text primary key,
  user_id         text not null references users on delete cascade,
  organization_id text not null references organizations on delete cascade,
  role            text not null default 'member' check (role in ('owner', 'admin', 'member', 'viewer')),
  created_at      timestamptz not null default now(),
  unique (user_id, organization_id)
);
create index on memberships (organization_id);

create table feature_flags (
  id              text primary key,
  organization_id text not null references organizations on delete cascade,
  key             text not null,
  enabled         boolean not null default false,
  updated_at      timestamptz not null default now(),
  unique (organization_id, key)
);

create table sessions (
  id         text primary key,
  user_id    text not null references users on delete cascade,
  token_hash text not null unique,
  expires_at timestamptz not null default now() + interval '30 days',
  created_at timestamptz not null default now()
);
create index on sessions (user_id);

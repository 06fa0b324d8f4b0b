//! `atelier.identity.v1`: users, tokens, roles, and what a caller asks of itself.

use std::collections::BTreeSet;

use atelier_core::access::{
    self, Caller, CustomRole, MAX_GROUPS, Permission, Permissions, Role, RoleFile,
};
use atelier_core::id::{ComputeName, GroupName, NodeName, Principal};
use atelier_core::live::Live;
use atelier_core::time::Timestamp;
use atelier_proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::compute::no_compute;
use super::status::told;
use super::{asking, caller};
use crate::daemon::{HandleError, Shared};
use crate::identity::Asking;
use crate::identity::people::{ListedToken, NewToken, People, UserChange};
use crate::store::blocked::BlockRecord;
use crate::store::people::UserRecord;

/// Who may come in.
#[derive(Clone)]
pub(super) struct Service(pub(super) Shared);

impl Service {
    fn people(&self) -> &People {
        self.0.door.people()
    }

    fn role(&self, name: &str) -> Result<Role, Status> {
        if name.trim().is_empty() {
            return Err(Status::invalid_argument(
                "role: is required: admin, compute-operator, data-scientist, reader or a custom role",
            ));
        }
        self.people().role_named(name.trim()).map_err(refused)
    }

    /// What a token is wanted for: whose, and at most as what.
    fn wanted(
        &self,
        request: &pb::CreateTokenRequest,
    ) -> Result<(Principal, Option<Role>), Status> {
        let role = match (request.role(), request.role_name.as_str()) {
            (pb::Role::Node, _) | (_, "node") => {
                let node = NodeName::new(&request.user).map_err(told)?;
                let principal = Principal::new(&format!("node:{node}")).map_err(told)?;
                return Ok((principal, Some(Role::Node(node))));
            }
            (_, name) if !name.is_empty() => Some(self.role(name)?),
            (pb::Role::Admin, _) => Some(Role::Admin),
            (pb::Role::ComputeOperator, _) => Some(Role::ComputeOperator),
            (pb::Role::DataScientist, _) => Some(Role::DataScientist),
            (pb::Role::Reader, _) => Some(Role::Reader),
            (pb::Role::Unspecified, _) => None,
        };
        let principal = Principal::new(&request.user).map_err(told)?;
        Ok((principal, role))
    }
}

fn refused(refused: crate::identity::people::Refused) -> Status {
    told(crate::identity::Error::from(refused))
}

fn millis(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_millis)
}

fn token(listed: &ListedToken) -> pb::Token {
    let record = &listed.record;
    pb::Token {
        id: listed.id.to_string(),
        user: record.principal.to_string(),
        role: match &record.role {
            Role::Node(_) => "node".to_owned(),
            role => role.to_string(),
        },
        created_at_ms: record.created_at.as_millis(),
        created_by: record.created_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        expires_at_ms: millis(record.expires_at),
        last_used_at_ms: millis(record.last_used_at),
        expired: listed.is_over,
    }
}

fn user(record: &UserRecord, tokens: &[ListedToken]) -> pb::User {
    pb::User {
        name: record.name.to_string(),
        role: record.role.to_string(),
        created_by: record.created_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        created_at_ms: record.created_at.as_millis(),
        tokens: tokens.iter().map(token).collect(),
        signs_in: record.signs_in,
        groups: record.groups.iter().map(ToString::to_string).collect(),
    }
}

fn groups_of(field: &str, groups: &[String]) -> Result<BTreeSet<GroupName>, Status> {
    if groups.len() > MAX_GROUPS {
        let why = format!("{field}: has {} groups, at most {MAX_GROUPS} are allowed", groups.len());
        return Err(Status::invalid_argument(why));
    }
    let groups = groups.iter().map(|group| GroupName::new(group));
    groups
        .collect::<Result<_, _>>()
        .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn blocked(record: BlockRecord) -> pb::BlockedUser {
    pb::BlockedUser {
        name: record.name.to_string(),
        reason: record.reason,
        by: record.by.to_string(),
        at_ms: record.at.as_millis(),
    }
}

fn names(permissions: Permissions) -> Vec<String> {
    permissions.iter().map(|permission| permission.name().to_owned()).collect()
}

fn builtin(role: &Role) -> pb::RoleDefinition {
    let description = match role {
        Role::Admin => "Everything, users and roles included",
        Role::ComputeOperator => {
            "Drains and scales computes, has nodes join, cancels jobs; sees how things stand, not what jobs read or wrote"
        }
        Role::DataScientist => "Submits jobs, reads everything, changes what is its own",
        _ => "Reads",
    };
    let allows = names(role.permissions());
    pb::RoleDefinition {
        name: role.to_string(),
        azure_name: role.azure_name().unwrap_or_default().to_owned(),
        description: description.to_owned(),
        actions: allows.clone(),
        allows,
        ..pb::RoleDefinition::default()
    }
}

fn custom(role: &CustomRole) -> pb::RoleDefinition {
    pb::RoleDefinition {
        name: role.name.to_string(),
        azure_name: String::new(),
        description: role.description.clone(),
        actions: role.actions.clone(),
        not_actions: role.not_actions.clone(),
        allows: names(role.permissions()),
        is_custom: true,
        created_by: role.created_by.to_string(),
        created_at_ms: role.created_at.as_millis(),
    }
}

#[tonic::async_trait]
impl pb::token_service_server::TokenService for Service {
    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let by = asking(&request)?;
        let request = request.into_inner();
        let (principal, role) = self.wanted(&request)?;
        if let Some(Role::Node(node)) = &role
            && !by.may(Permission::ManageTokens)
            && self.0.door.has_node(node)
        {
            return Err(Status::already_exists(format!(
                "there is a node '{node}' already; `atelier node token create --node {node}` has another machine take \
                 its place"
            )));
        }
        let lives_ms = request.expires_after_s.map(|seconds| seconds.saturating_mul(1000));
        if lives_ms == Some(0) {
            return Err(Status::invalid_argument(
                "expires: is over at once; give it some time, for example 30d",
            ));
        }
        let made = self.people().issue(NewToken { principal, role, lives_ms }, &by).await;
        let made = made.map_err(told)?;
        let listed = &made.listed;
        let (user, role) = (&listed.record.principal, &listed.record.role);
        tracing::info!(%user, %role, id = %listed.id, by = %by.principal, "token made");
        let listed = Some(token(listed));
        Ok(Response::new(pb::CreateTokenResponse { token: made.secret, listed }))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let caller = caller(&request)?;
        let wanted = match request.get_ref().user.as_str() {
            "" => None,
            name => Some(Principal::new(name).map_err(told)?),
        };
        let own = caller.principal.clone();
        let sees_all = caller.may(Permission::ManageTokens);
        let is_nodes = |listed: &ListedToken| {
            matches!(listed.record.role, Role::Node(_)) && caller.may(Permission::JoinNodes)
        };
        let tokens = self
            .people()
            .tokens(wanted.as_ref())
            .into_iter()
            .filter(|listed| sees_all || listed.record.principal == own || is_nodes(listed));
        let tokens = tokens.map(|listed| token(&listed)).collect();
        Ok(Response::new(pb::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Result<Response<pb::Token>, Status> {
        let by = asking(&request)?;
        let gone = self.people().revoke(&request.get_ref().id, &by).await.map_err(told)?;
        let user = &gone.record.principal;
        tracing::info!(%user, id = %gone.id, by = %by.principal, "token revoked");
        Ok(Response::new(token(&gone)))
    }
}

#[tonic::async_trait]
impl pb::user_service_server::UserService for Service {
    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let by = asking(&request)?;
        let pb::CreateUserRequest { name, role, groups } = request.into_inner();
        let name = Principal::new(&name).map_err(told)?;
        let role = self.role(&role)?;
        let groups = groups_of("groups", &groups)?;
        let made = self.people().create_user(name, role, groups, &by).await.map_err(told)?;
        tracing::info!(user = %made.name, role = %made.role, by = %by.principal, "user made");
        Ok(Response::new(user(&made, &[])))
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let by = asking(&request)?;
        let pb::UpdateUserRequest { name, role, add_groups, remove_groups } = request.into_inner();
        let add = groups_of("add_groups", &add_groups)?;
        let remove = groups_of("remove_groups", &remove_groups)?;
        // Without a change of groups it is about the role, which then has to be there.
        let stays = role.trim().is_empty() && !(add.is_empty() && remove.is_empty());
        let role = if stays { None } else { Some(self.role(&role)?) };
        let change = UserChange { role, add, remove };
        let changed = self.people().update_user(&name, change, &by).await.map_err(told)?;
        tracing::info!(user = %changed.name, role = %changed.role, by = %by.principal, "user changed");
        Ok(Response::new(user(&changed, &[])))
    }

    async fn delete_user(
        &self,
        request: Request<pb::DeleteUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let by = asking(&request)?;
        let gone = self.people().delete_user(&request.get_ref().name, &by).await.map_err(told)?;
        tracing::info!(user = %gone.name, by = %by.principal, "user deleted");
        Ok(Response::new(user(&gone, &[])))
    }

    async fn block_user(
        &self,
        request: Request<pb::BlockUserRequest>,
    ) -> Result<Response<pb::BlockedUser>, Status> {
        let by = asking(&request)?;
        let pb::BlockUserRequest { name, reason } = request.into_inner();
        let name = Principal::new(&name).map_err(told)?;
        let block = self.people().block(name, &reason, &by).await.map_err(told)?;
        tracing::info!(user = %block.name, by = %by.principal, "user blocked");
        Ok(Response::new(blocked(block)))
    }

    async fn unblock_user(
        &self,
        request: Request<pb::UnblockUserRequest>,
    ) -> Result<Response<pb::BlockedUser>, Status> {
        let by = asking(&request)?;
        let name = Principal::new(&request.get_ref().name).map_err(told)?;
        let block = self.people().unblock(&name, &by).await.map_err(told)?;
        tracing::info!(user = %block.name, by = %by.principal, "user no longer blocked");
        Ok(Response::new(blocked(block)))
    }

    async fn get_user(
        &self,
        request: Request<pb::GetUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let (found, tokens) = self.people().user(&request.get_ref().name).map_err(refused)?;
        Ok(Response::new(user(&found, &tokens)))
    }

    async fn list_users(
        &self,
        _request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let users = self.people().users().iter().map(|found| user(found, &[])).collect();
        let blocked = self.people().blocked().into_iter().map(blocked).collect();
        Ok(Response::new(pb::ListUsersResponse { users, blocked }))
    }
}

impl Service {
    async fn put_role(
        &self,
        by: Asking,
        request: pb::PutRoleRequest,
        replace: bool,
    ) -> Result<Response<pb::RoleDefinition>, Status> {
        let pb::PutRoleRequest { name, description, actions, not_actions } = request;
        let file = RoleFile { name, description, actions, not_actions, ..RoleFile::default() };
        let made = self.people().put_role(file, replace, &by).await.map_err(told)?;
        tracing::info!(role = %made.name, by = %by.principal, "role made or changed");
        Ok(Response::new(custom(&made)))
    }
}

#[tonic::async_trait]
impl pb::role_service_server::RoleService for Service {
    async fn create_role(
        &self,
        request: Request<pb::PutRoleRequest>,
    ) -> Result<Response<pb::RoleDefinition>, Status> {
        self.put_role(asking(&request)?, request.into_inner(), false).await
    }

    async fn update_role(
        &self,
        request: Request<pb::PutRoleRequest>,
    ) -> Result<Response<pb::RoleDefinition>, Status> {
        self.put_role(asking(&request)?, request.into_inner(), true).await
    }

    async fn delete_role(
        &self,
        request: Request<pb::DeleteRoleRequest>,
    ) -> Result<Response<pb::RoleDefinition>, Status> {
        let by = asking(&request)?;
        let gone = self.people().delete_role(&request.get_ref().name, &by).await.map_err(told)?;
        tracing::info!(role = %gone.name, by = %by.principal, "role deleted");
        Ok(Response::new(custom(&gone)))
    }

    async fn get_role(
        &self,
        request: Request<pb::GetRoleRequest>,
    ) -> Result<Response<pb::RoleDefinition>, Status> {
        let found = match self.role(&request.get_ref().name)? {
            Role::Custom(held) => self.people().role(&held.name).as_ref().map(custom),
            role => Some(builtin(&role)),
        };
        found.map(Response::new).ok_or_else(|| Status::not_found("the role has just been deleted"))
    }

    async fn list_roles(
        &self,
        _request: Request<pb::ListRolesRequest>,
    ) -> Result<Response<pb::ListRolesResponse>, Status> {
        let own = self.people().roles();
        let roles = Role::BUILTIN.iter().map(builtin).chain(own.iter().map(custom)).collect();
        Ok(Response::new(pb::ListRolesResponse { roles }))
    }
}

#[tonic::async_trait]
impl pb::auth_service_server::AuthService for Service {
    async fn who_am_i(
        &self,
        request: Request<pb::WhoAmIRequest>,
    ) -> Result<Response<pb::WhoAmIResponse>, Status> {
        let Caller { principal, role } = caller(&request)?;
        let allows = names(role.permissions());
        let groups = self.people().groups_of(&principal).iter().map(ToString::to_string).collect();
        let (principal, role) = (principal.to_string(), role.to_string());
        Ok(Response::new(pb::WhoAmIResponse { principal, role, allows, groups }))
    }

    async fn check_action(
        &self,
        request: Request<pb::CheckActionRequest>,
    ) -> Result<Response<pb::CheckActionResponse>, Status> {
        let caller = caller(&request)?;
        let pb::CheckActionRequest { action, compute } = request.into_inner();
        let permission = Permission::named(&action)
            .map_err(|unknown| Status::invalid_argument(format!("action: {unknown}")))?;
        let verdict = match compute.as_str() {
            "" => access::can(&caller, permission),
            name => {
                let compute = ComputeName::new(name).map_err(|_| no_compute(name))?;
                let verdict = move |live: &Live| live.can_on(&caller, permission, &compute);
                let verdict = self.0.handle.look(move |live, _| verdict(live)).await;
                verdict.map_err(told)?.map_err(|refusal| told(HandleError::from(refusal)))?
            }
        };
        let access::Verdict { allowed, reason } = verdict;
        let (reason, action) = (reason.to_string(), permission.to_string());
        Ok(Response::new(pb::CheckActionResponse { allowed, reason, action }))
    }

    async fn list_actions(
        &self,
        _request: Request<pb::ListActionsRequest>,
    ) -> Result<Response<pb::ListActionsResponse>, Status> {
        let all = Permission::ALL.iter().filter(|permission| permission.is_for_people());
        let action = |permission: &Permission| pb::Action {
            name: permission.name().to_owned(),
            description: permission.action().to_owned(),
        };
        Ok(Response::new(pb::ListActionsResponse { actions: all.map(action).collect() }))
    }
}

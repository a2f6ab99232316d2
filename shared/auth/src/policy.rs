//! The rules of who may do what to which object.

use contracts::{BaseId, CustomerId, DroneId};

use crate::Identity;

/// What somebody wants to do, with the attributes of the object that decide.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Ask for a delivery, list one's own.
    OwnDeliveries,
    /// Read a delivery, its timeline, its package, its live view.
    ReadDelivery {
        /// Whose it is.
        owner: &'a CustomerId,
    },
    /// Cancel or reschedule a delivery.
    ChangeDelivery {
        /// Whose it is.
        owner: &'a CustomerId,
    },
    /// Send telemetry, read missions.
    Fly,
    /// Speak for a drone.
    SpeakForDrone {
        /// Which.
        drone: DroneId,
        /// Where it is based.
        base: &'a BaseId,
    },
    /// Register or retire a drone of that base.
    RegisterDrone {
        /// The base in the request.
        base: &'a BaseId,
        /// The base that the drone has now, where it is known.
        current: Option<&'a BaseId>,
    },
    /// See the drones of a base, or (none) of all.
    ReadFleet {
        /// Which base's.
        base: Option<&'a BaseId>,
    },
    /// Run the system.
    Operate,
    /// Say a command that only services say to each other.
    Command,
}

/// The caller may not. For an object that has an owner the answer must be the same as for an absent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not allowed")]
pub struct Denied;

/// Whether `who` may do `action`.
pub fn allow(who: &Identity, action: &Action<'_>) -> Result<(), Denied> {
    let allowed = match (who, action) {
        // Services act on behalf of the system: they are the ones that ask this question for users.
        (Identity::Service(_), _) => true,
        (Identity::Customer(_), Action::OwnDeliveries) => true,
        (Identity::Customer(me), Action::ReadDelivery { owner } | Action::ChangeDelivery { owner }) => me == *owner,
        (Identity::Operator(_), Action::ReadDelivery { .. } | Action::ReadFleet { .. } | Action::Operate) => true,
        (Identity::Operator(_), Action::RegisterDrone { .. }) => true,
        (Identity::Drone(_) | Identity::BaseStation(_), Action::Fly) => true,
        (Identity::Drone(me), Action::SpeakForDrone { drone, .. }) => me == drone,
        (Identity::BaseStation(me), Action::SpeakForDrone { base, .. }) => me == *base,
        (Identity::BaseStation(me), Action::RegisterDrone { base, current }) => {
            me == *base && current.is_none_or(|current| current == me)
        }
        (Identity::BaseStation(me), Action::ReadFleet { base }) => Some(me) == *base,
        _ => false,
    };
    if allowed { Ok(()) } else { Err(Denied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn customer(name: &str) -> Identity {
        Identity::Customer(name.parse().unwrap())
    }

    fn base(name: &str) -> BaseId {
        name.parse().unwrap()
    }

    #[test]
    fn a_customer_reads_and_changes_only_their_own() {
        let owner: CustomerId = "alice".parse().unwrap();
        assert_eq!(allow(&customer("alice"), &Action::ReadDelivery { owner: &owner }), Ok(()));
        assert_eq!(allow(&customer("bob"), &Action::ReadDelivery { owner: &owner }), Err(Denied));
        assert_eq!(allow(&customer("bob"), &Action::ChangeDelivery { owner: &owner }), Err(Denied));
        assert_eq!(allow(&Identity::Operator("o".into()), &Action::ChangeDelivery { owner: &owner }), Err(Denied));
        assert_eq!(allow(&customer("alice"), &Action::Operate), Err(Denied));
        assert_eq!(allow(&customer("alice"), &Action::Fly), Err(Denied));
        assert_eq!(allow(&customer("alice"), &Action::Command), Err(Denied));
    }

    #[test]
    fn a_base_station_runs_only_its_own_drones() {
        let (north, south) = (base("north"), base("south"));
        let me = Identity::BaseStation(north.clone());
        assert_eq!(allow(&me, &Action::RegisterDrone { base: &north, current: None }), Ok(()));
        assert_eq!(allow(&me, &Action::RegisterDrone { base: &south, current: None }), Err(Denied));
        assert_eq!(allow(&me, &Action::RegisterDrone { base: &north, current: Some(&south) }), Err(Denied));
        assert_eq!(allow(&me, &Action::ReadFleet { base: None }), Err(Denied));
        assert_eq!(allow(&me, &Action::ReadFleet { base: Some(&north) }), Ok(()));
    }
}

//! Listings of folders.

use super::world::{STORE, TOKEN, World};

#[tokio::test]
async fn a_folder_is_listed_in_parts_as_it_is_at_once() {
    let world = World::new(false).await;
    // One that has the path of a folder, and a neighbour whose name begins alike.
    for at in ["in/a", "in/a-b", "in/a/1", "in/b/c/d/1", "in2/x"] {
        world.store(at, at.as_bytes());
    }
    for number in 0..20 {
        world.store(&format!("in/many/{}/{}", number / 5, number % 5), b"x");
    }
    let expected: Vec<String> = {
        let daemon = world.daemon.lock().unwrap();
        let below = daemon.objects.keys().filter_map(|path| path.strip_prefix("in/"));
        below.map(str::to_owned).collect()
    };
    for tells_folders in [false, true] {
        world.daemon.lock().unwrap().tells_folders = tells_folders;
        world.fail_next(2);
        let (found, unnamed) = world.plane.0.gateway.list(STORE, "in", TOKEN).await.unwrap();
        let below: Vec<_> = found.into_iter().map(|object| object.below).collect();
        assert_eq!(below, expected, "{tells_folders}");
        assert!(unnamed.is_empty());
        let (found, _) = world.plane.0.gateway.list(STORE, "in/a-b", TOKEN).await.unwrap();
        assert_eq!((found.len(), found[0].below.as_str(), found[0].size), (1, "", 6));
    }
    let asked = std::mem::take(&mut world.daemon.lock().unwrap().requests);
    for folder in ["in/a", "in/b", "in/b/c", "in/many", "in/many/3"] {
        assert!(asked.contains(&format!("LIST {folder}")), "{folder}: {asked:?}");
    }
}
